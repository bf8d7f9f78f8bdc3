"""Sentences in languages that the embedded model was not trained on, written for these tests."""

FOREIGN = {
    "am": "ዛሬ ጠዋት ወደ ገበያ ሄጄ አትክልትና ፍራፍሬ ገዛሁ። ልጆቹ በትምህርት ቤቱ ግቢ ውስጥ ይጫወታሉ። ማታ ዝናብ ስለዘነበ መንገዱ በጣም ጭቃ ሆኗል።",
    "ar": "ذهبت هذا الصباح إلى السوق واشتريت الخضار والفاكهة الطازجة. يلعب الأطفال في ساحة المدرسة بعد انتهاء الدرس. أمطرت السماء طوال الليل فأصبح الطريق مليئا بالوحل.",
    "bg": "Тази сутрин отидох на пазара и купих пресни зеленчуци за вечеря. Децата играят в двора на училището след часовете. Цяла нощ валя дъжд и пътят към селото стана кален.",
    "bn": "আজ সকালে আমি বাজারে গিয়ে তাজা শাকসবজি আর মাছ কিনেছি। ছুটির পরে শিশুরা স্কুলের মাঠে খেলা করে। সারা রাত বৃষ্টি হওয়ায় গ্রামের রাস্তা কাদায় ভরে গেছে।",
    "ca": "Aquest matí he anat al mercat i he comprat verdures fresques per sopar. Els nens juguen al pati de l'escola quan acaben les classes. Ha plogut tota la nit i el camí del poble està ple de fang.",
    "cs": "Dnes ráno jsem šla na trh a koupila čerstvou zeleninu k večeři. Děti si po vyučování hrají na školním dvoře. Celou noc pršelo a cesta do vesnice je plná bláta.",
    "da": "I morges gik jeg på markedet og købte friske grøntsager til aftensmaden. Børnene leger i skolegården, når undervisningen er slut. Det har regnet hele natten, og vejen til landsbyen er fuld af mudder.",
    "el": "Σήμερα το πρωί πήγα στην αγορά και πήρα φρέσκα λαχανικά για το βράδυ. Τα παιδιά παίζουν στην αυλή του σχολείου μετά το μάθημα. Έβρεχε όλη τη νύχτα και ο δρόμος για το χωριό γέμισε λάσπη.",
    "eu": "Gaur goizean azokara joan naiz eta barazki freskoak erosi ditut afarirako. Haurrak eskolako patioan jolasten dira eskolak bukatu ondoren. Gau osoan euria egin du eta herrirako bidea lokatzez beteta dago.",
    "fa": "امروز صبح به بازار رفتم و برای شام سبزی تازه خریدم. بچه‌ها بعد از پایان کلاس در حیاط مدرسه بازی می‌کنند. تمام شب باران بارید و جاده روستا پر از گل شده است.",
    "fi": "Kävin tänä aamuna torilla ja ostin tuoreita vihanneksia illalliseksi. Lapset leikkivät koulun pihalla, kun tunnit ovat päättyneet. Koko yön satoi, ja kylään vievä tie on täynnä mutaa.",
    "gl": "Esta mañá fun ao mercado e merquei verduras frescas para a cea. Os nenos xogan no patio da escola cando rematan as clases. Choveu toda a noite e o camiño da aldea está cheo de lama.",
    "he": "הבוקר הלכתי לשוק וקניתי ירקות טריים לארוחת הערב. הילדים משחקים בחצר בית הספר אחרי השיעורים. כל הלילה ירד גשם והדרך אל הכפר מלאה בוץ.",
    "hi": "आज सुबह मैं बाज़ार गया और रात के खाने के लिए ताज़ी सब्ज़ियाँ खरीदीं। छुट्टी के बाद बच्चे स्कूल के मैदान में खेलते हैं। रात भर बारिश हुई और गाँव का रास्ता कीचड़ से भर गया।",
    "hr": "Jutros sam otišla na tržnicu i kupila svježe povrće za večeru. Djeca se nakon nastave igraju u školskom dvorištu. Cijelu je noć padala kiša i cesta prema selu puna je blata.",
    "hu": "Ma reggel elmentem a piacra, és friss zöldséget vettem vacsorára. A gyerekek tanítás után az iskola udvarán játszanak. Egész éjjel esett az eső, és a faluba vezető út tele van sárral.",
    "hy": "Այսօր առավոտյան գնացի շուկա և ընթրիքի համար թարմ բանջարեղեն գնեցի։ Երեխաները դասերից հետո խաղում են դպրոցի բակում։ Ամբողջ գիշեր անձրև եկավ, և գյուղի ճանապարհը ցեխոտ է։",
    "it": "Stamattina sono andata al mercato e ho comprato verdura fresca per la cena. I bambini giocano nel cortile della scuola quando finiscono le lezioni. Ha piovuto tutta la notte e la strada del paese è piena di fango.",
    "ka": "დღეს დილით ბაზარში წავედი და ვახშმისთვის ახალი ბოსტნეული ვიყიდე. ბავშვები გაკვეთილების შემდეგ სკოლის ეზოში თამაშობენ. მთელი ღამე წვიმდა და სოფლის გზა ტალახით აივსო.",
    "ko": "오늘 아침 시장에 가서 저녁에 먹을 신선한 채소를 샀다. 수업이 끝나면 아이들은 학교 운동장에서 뛰어논다. 밤새 비가 와서 마을로 가는 길이 온통 진흙투성이가 되었다.",
    "lt": "Šį rytą nuėjau į turgų ir nusipirkau šviežių daržovių vakarienei. Vaikai po pamokų žaidžia mokyklos kieme. Visą naktį lijo, todėl kelias į kaimą pilnas purvo.",
    "ms": "Pagi tadi saya pergi ke pasar dan membeli sayur segar untuk makan malam. Kanak-kanak bermain di padang sekolah selepas tamat kelas. Hujan turun sepanjang malam dan jalan ke kampung itu penuh dengan lumpur.",
    "nb": "I dag tidlig gikk jeg på torget og kjøpte ferske grønnsaker til middag. Barna leker i skolegården etter at timene er ferdige. Det har regnet hele natten, og veien til bygda er full av gjørme.",
    "nl": "Vanochtend ging ik naar de markt en kocht verse groente voor het avondeten. De kinderen spelen op het schoolplein als de lessen voorbij zijn. Het heeft de hele nacht geregend en de weg naar het dorp ligt vol modder.",
    "pl": "Dziś rano poszłam na targ i kupiłam świeże warzywa na kolację. Po lekcjach dzieci bawią się na szkolnym podwórku. Całą noc padał deszcz i droga do wsi jest pełna błota.",
    "pt": "Hoje de manhã fui à feira e comprei legumes frescos para o jantar. As crianças brincam no pátio da escola quando as aulas acabam. Choveu a noite inteira e a estrada da aldeia está cheia de lama.",
    "ro": "Azi dimineață am mers la piață și am cumpărat legume proaspete pentru cină. Copiii se joacă în curtea școlii după ce se termină orele. A plouat toată noaptea și drumul spre sat este plin de noroi.",
    "ru": "Сегодня утром я сходила на рынок и купила свежих овощей на ужин. После уроков дети играют во дворе школы. Всю ночь шёл дождь, и дорога в деревню превратилась в грязь.",
    "sv": "I morse gick jag till torget och köpte färska grönsaker till middagen. Barnen leker på skolgården när lektionerna är slut. Det har regnat hela natten och vägen till byn är full av lera.",
    "sw": "Leo asubuhi nilienda sokoni nikanunua mboga mpya kwa ajili ya chakula cha jioni. Watoto wanacheza kwenye uwanja wa shule baada ya masomo. Mvua ilinyesha usiku kucha na barabara ya kijiji imejaa matope.",
    "ta": "இன்று காலை சந்தைக்குச் சென்று இரவு உணவுக்குப் புதிய காய்கறிகள் வாங்கினேன். வகுப்பு முடிந்ததும் குழந்தைகள் பள்ளி மைதானத்தில் விளையாடுகிறார்கள். இரவு முழுவதும் மழை பெய்ததால் கிராமத்துச் சாலை சேறாகிவிட்டது.",
    "th": "เช้านี้ฉันไปตลาดและซื้อผักสดมาทำอาหารเย็น เด็กๆ เล่นอยู่ในสนามของโรงเรียนหลังเลิกเรียน ฝนตกทั้งคืนจนถนนเข้าหมู่บ้านเต็มไปด้วยโคลน",
    "tl": "Kaninang umaga pumunta ako sa palengke at bumili ng sariwang gulay para sa hapunan. Naglalaro ang mga bata sa bakuran ng paaralan pagkatapos ng klase. Umulan buong gabi kaya puno ng putik ang daan papunta sa nayon.",
    "tr": "Bu sabah pazara gittim ve akşam yemeği için taze sebze aldım. Çocuklar dersten sonra okulun bahçesinde oynuyor. Bütün gece yağmur yağdı ve köye giden yol çamur içinde kaldı.",
    "uk": "Сьогодні вранці я пішла на ринок і купила свіжі овочі на вечерю. Після уроків діти граються на шкільному подвір'ї. Усю ніч ішов дощ, і дорога до села стала брудною.",
    "ur": "آج صبح میں بازار گیا اور رات کے کھانے کے لیے تازہ سبزیاں خریدیں۔ چھٹی کے بعد بچے اسکول کے میدان میں کھیلتے ہیں۔ ساری رات بارش ہوئی اور گاؤں کا راستہ کیچڑ سے بھر گیا۔",
}  # fmt: skip


def pieces(text: str, length: int) -> list[str]:
    """A text cut at spaces into pieces of about so many characters, the last and shorter one left out."""
    found, rest = [], text
    while len(rest) >= length:
        end = rest.rfind(" ", length // 2, length + 1)
        end = length if end < 0 else end
        found.append(rest[:end])
        rest = rest[end:].lstrip()
    return found
