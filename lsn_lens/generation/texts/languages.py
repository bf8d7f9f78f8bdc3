"""Facts about languages for identifiers: their scripts, and the members of macrolanguages."""

from collections import Counter
from functools import cache

from lsn_lens.text.scripts import script_of

# script -> codes of the languages written in it; every other language is taken to be written in Latin letters
WRITTEN_IN = {
    "ARABIC": "ar arc ary arz az azb bal ckb fa ha kk ks ku ky ms pa pnb ps sd sdh ug ur uz uzs",
    "ARMENIAN": "hy hyw",
    "BENGALI": "as bn mni",
    "BOPOMOFO": "zh",
    "CYRILLIC": "ab az ba be bg ce crh cv kk kv ky mk mn myv os ru sah sr tg tk tt udm uk uz",
    "DEVANAGARI": "awa bh bho brx doi gom hi kok ks mai mr ne new sa sd",
    "ETHIOPIC": "am gez om ti",
    "GEORGIAN": "ka xmf",
    "GREEK": "el grc",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HAN": "gan hak ja ko lzh nan wuu yue zh",
    "HANGUL": "ko",
    "HEBREW": "he hbo iw lad yi",
    "HIRAGANA": "ja",
    "KANNADA": "kn tcy",
    "KATAKANA": "ain ja",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "MONGOLIAN": "mn",
    "MYANMAR": "my shn",
    "ORIYA": "or",
    "SINHALA": "si",
    "SYRIAC": "arc syr",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAANA": "dv",
    "THAI": "th",
    "TIBETAN": "bo dz",
    "TIFINAGH": "kab shi zgh",
}
# of these, the ones that are written in Latin letters too
ALSO_LATIN_CODES = """
az crh gom ha kab kk kok ku lad ms om shi sr tg tk tt ug uz
"""
ALSO_LATIN = frozenset(ALSO_LATIN_CODES.split())
# script subtags of BCP 47, as in "sr-Latn": then only this script is meant
SUBTAGS = {
    "arab": {"ARABIC"}, "armn": {"ARMENIAN"}, "beng": {"BENGALI"}, "cyrl": {"CYRILLIC"}, "deva": {"DEVANAGARI"},
    "ethi": {"ETHIOPIC"}, "geor": {"GEORGIAN"}, "grek": {"GREEK"}, "gujr": {"GUJARATI"}, "guru": {"GURMUKHI"},
    "hang": {"HANGUL"}, "hani": {"HAN"}, "hans": {"HAN"}, "hant": {"HAN"}, "hebr": {"HEBREW"},
    "hira": {"HIRAGANA"}, "jpan": {"HAN", "HIRAGANA", "KATAKANA"}, "kana": {"KATAKANA"}, "khmr": {"KHMER"},
    "knda": {"KANNADA"}, "kore": {"HAN", "HANGUL"}, "laoo": {"LAO"}, "latn": {"LATIN"}, "mlym": {"MALAYALAM"},
    "mong": {"MONGOLIAN"}, "mymr": {"MYANMAR"}, "orya": {"ORIYA"}, "sinh": {"SINHALA"}, "taml": {"TAMIL"},
    "telu": {"TELUGU"}, "tfng": {"TIFINAGH"}, "thaa": {"THAANA"}, "thai": {"THAI"}, "tibt": {"TIBETAN"},
}  # fmt: skip
# code of a macrolanguage -> codes of its members that identifiers know beside it (ISO 639-3)
MEMBERS = {
    "ar": ("ary", "arz"), "ku": ("sdh",), "lv": ("ltg",), "no": ("nb", "nn"), "uz": ("uzs",), "zh": ("wuu", "yue")
}  # fmt: skip


@cache
def scripts_of(label: str) -> frozenset[str]:
    """The scripts that a language is written in, by Unicode's names, from its label ("ja", "sr-Latn", "zh_Hant_TW")."""
    code, *subtags = label.lower().replace("_", "-").split("-")
    named = [SUBTAGS[each] for each in subtags if each in SUBTAGS]
    if named:
        return frozenset(named[0])
    found = {script for script, codes in WRITTEN_IN.items() if code in codes.split()}
    return frozenset(found | {"LATIN"}) if not found or code in ALSO_LATIN else frozenset(found)


def script_shares(text: str) -> dict[str, float]:
    """The share of each script in a text's letters; nothing for a text without letters."""
    counts = Counter(filter(None, map(script_of, text)))
    return {script: count / counts.total() for script, count in counts.items()}
