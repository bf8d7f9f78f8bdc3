"""Instructions that name a language: from a template and labels to the words in front of a prompt."""

from collections.abc import Iterable, Mapping

from lsn_lens.labels import label_list
from lsn_lens.refusal import check_kind

PLACE = "{language}"
# BCP 47 label in lower case -> English name
NAMES = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani", "be": "Belarusian",
    "bg": "Bulgarian", "bn": "Bengali", "bo": "Tibetan", "br": "Breton", "bs": "Bosnian", "ca": "Catalan",
    "ceb": "Cebuano", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "en-gb": "British English", "en-us": "American English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian",
    "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fil": "Filipino", "fo": "Faroese", "fr": "French",
    "fy": "West Frisian", "ga": "Irish", "gd": "Scottish Gaelic", "gl": "Galician", "gu": "Gujarati", "ha": "Hausa",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "ht": "Haitian Creole", "hu": "Hungarian", "hy": "Armenian",
    "id": "Indonesian", "ig": "Igbo", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jv": "Javanese",
    "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean", "ku": "Kurdish", "ky": "Kyrgyz",
    "la": "Latin", "lb": "Luxembourgish", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian", "mg": "Malagasy",
    "mi": "Maori", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay",
    "mt": "Maltese", "my": "Burmese", "nb": "Norwegian Bokmål", "ne": "Nepali", "nl": "Dutch",
    "nn": "Norwegian Nynorsk", "no": "Norwegian", "om": "Oromo", "or": "Odia", "pa": "Punjabi", "pl": "Polish",
    "ps": "Pashto", "pt": "Portuguese", "pt-br": "Brazilian Portuguese", "pt-pt": "European Portuguese",
    "qu": "Quechua", "ro": "Romanian", "ru": "Russian", "sa": "Sanskrit", "sd": "Sindhi", "si": "Sinhala",
    "sk": "Slovak", "sl": "Slovenian", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "su": "Sundanese",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai", "ti": "Tigrinya",
    "tk": "Turkmen", "tl": "Tagalog", "tr": "Turkish", "tt": "Tatar", "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "wo": "Wolof", "xh": "Xhosa", "yi": "Yiddish", "yo": "Yoruba",
    "yue": "Cantonese", "zh": "Chinese", "zh-hans": "Simplified Chinese", "zh-hant": "Traditional Chinese",
    "zu": "Zulu",
}  # fmt: skip


def instruction_words(
    template: str | Mapping[str, str], targets: Iterable[str], names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The words of an instruction by target, for `instruction`: the template with the language's name.

    Args:
        template: One for all targets, as "Answer in {language}. ", or one by target.
        targets: Labels of the languages.
        names: Names by label; the others are English names of BCP 47 labels, as "French" for "fr". A label with a
            region or a script has a name of its own ("zh-Hant": "Traditional Chinese"), or none.

    Raises:
        ValueError: A template for all that has no place for the name, or targets that are no list of labels.
        KeyError: A target without a template, or whose name is not known and not given.
    """
    check_kind("template", template, str | Mapping, 'words, as "Answer in {language}. ", or words by target')
    targets = label_list(targets, "targets")
    if isinstance(template, str):
        if PLACE not in template:
            raise ValueError(f"the template {template!r} is the same for all targets: put {PLACE} where the name goes.")
        template = dict.fromkeys(targets, template)
    if missing := [each for each in targets if each not in template]:
        raise KeyError(f"no template for the targets {missing}; there are templates for {list(template)}.")
    known = {each: NAMES.get(each.lower().replace("_", "-")) for each in targets} | dict(names or {})
    if nameless := [each for each in targets if PLACE in template[each] and not known[each]]:
        given = ", ".join(f"{each!r}: ..." for each in nameless)
        raise KeyError(f"no name is known for the targets {nameless}: give names={{{given}}}.")
    return {each: template[each].replace(PLACE, known[each] or "") for each in targets}
