"""Negations around an answer, by language: "not Sydney", "Sydney is not the capital"; all texts are folded."""

from __future__ import annotations

import re

from xlift.rating.text import spaced

# What may stand between a negation and what it negates: articles, prepositions, "has".
_SMALL = (
    "the|an?|in|on|at|by|to|of|than|be|ha(?:ve|s)|l[aeo]s?|l|une?|de|du|des|d|à|en|au|el|por|o|os|as|uma?|em|no|na|do|da|"
    r"il|gli|i|di|della?|dell|nella?|nell|d[aeiu][rsmn]|ein\w{0,2}|im|von|het|een|op|van|в|на|из|kota|ada|هو|هي|في|من"
)
_NEGATED = (
    r"\b(?:not|\w+n t|never|n?either|nor|rather than|instead of|plut[oô]t qu\w|au lieu|nem|em vez|ao invés|en lugar|"
    r"n[aã]o(?: (?:é|são|foi|era|fica|está|tem|há|se chama))?|no (?:es|son|fue|era|está|tiene|hay|se llama)|en vez|né|"
    r"non(?: (?:è|sono|fu|era|ha|si trova|si chiama))?|invece|anziché|nicht|weder|(?:an)?statt|in plaats|niet|tidak|"
    r"(?:ist|sind|hat|haben) kein\w{0,2}|(?:is|zijn|heeft|hebben) geen|bukan(?:lah)?|و?ليست?|و?لا|لم [يت]كن|بدلا|غير|"
    r"не(?: (?:является|был[ао]?|имеет|называется|это))?|ни|вместо)|न कि|बजाय|(?<!是)不(?:是|在|叫|为)在?|[并而绝]非"
)
# These mean something else in other languages: Portuguese "no Peru", Dutch "pas 8", German "noch 8".
_NEGATED_IN = {
    **{
        "es": "no|ni",
        "fr": "pas|ni|jamais",
        "nl": "noch",
        "ca": "no(?: és| era)?|ni",
        "gl": "non(?: é)?|nin",
        "sv": "inte|icke|ej",
    },
    **{"da": "ikke", "no": "ikke|ikkje", "fi": "ei(?: ole| ollut)?|eikä", "hu": "nem|sem", "ms": "bukan(?:lah)?"},
    **{"pl": "nie(?: jest| był[aoy]?| jest to)?|ani|zamiast", "cs": "není|nebyl[aoiy]?|ne|nikoliv?|ani|místo"},
    **{"sk": "nie(?: je)?|nebol[aoi]?|ani|namiesto", "hr": "nije|ne|niti|umjesto", "sr": "nije|ne|niti|umesto"},
    **{
        "ro": "nu(?: este| e| era)?|nici|în loc de",
        "uk": "не(?: є| був| була| було)?|ні|замість",
        "bg": "не(?: е)?|нито",
    },
    **{"el": "δεν(?: ειναι| ηταν)?|οχι|ουτε|αντι για", "he": "לא|אינ[הו]|איננ[הו]|ולא", "fa": "نه|نيست", "ur": "نه"},
    **{"vi": "không(?: phải)?(?: là)?|chẳng phải(?: là)?|chứ không phải", "th": "ไม่ใช่", "sw": "si|sio|siyo|wala"},
    **{"bn": "না", "mr": "ना", "sl": "ni|ne|niti|namesto", "mk": "не(?: е)?|ниту|наместо", "be": "не|ні|замест"},
    **{
        "et": "ei ole|pole|mitte",
        "lt": "ne|nėra|nei|ne tai",
        "lv": "nav|ne|nevis",
        "sq": "nuk (?:është|ishte)|jo|s është",
    },
    **{
        "eu": "ez(?: da| dago)?",
        "cy": "nid|nad|dim|ddim|nage",
        "ga": "n[íi]|n[íi] h[ée]|nach|seachas",
        "af": "nie|nooit",
    },
    **{"is": "ekki|hvorki", "fil": "hindi|hindi ang|hindi po", "ka": "არ (?:არის|იყო)|არა", "hy": "ոչ(?: թե)?|չէ"},
    **{"km": "មិនមែន(?:ជា)?", "lo": "ບໍ່ແມ່ນ", "yo": "k[ìi] [íi] [ṣs]e", "eo": "ne(?: estas)?|nek", "bs": "nije|ne|niti"},
    **{"la": "non|nec|neque", "jv": "dudu|ora", "ne": "न", "gd": "chan e", "lb": "net"},
}
_SMALL_IN = {"el": "[οητ]|το|στην?|στον?", "ro": "la|în", "sv": "i", "da": "i", "no": "i", "he": "ב|את", "vi": "ở|tại"}
_SMALL_IN |= {
    "et": "see|ta",
    "lt": "tai",
    "lv": "tā|tas",
    "sq": "në|i|e",
    "cy": "yn|y",
    "ga": "h[ée]|é|í|an",
    "is": "í|á",
}
_SMALL_IN |= {"fil": "ang|si|sa|po", "mk": "во|на|е", "sl": "to|v|na", "eu": "hori", "af": "die|in", "be": "у|ў|гэта"}
_SMALL_IN |= {"pl": "to|w|we", "cs": "to|v|ve", "sk": "to|v|vo", "hr": "to|u", "sr": "to|u", "uk": "у|в|це", "bg": "в"}
# What denies the answer before it.
_DENIED_IN = {
    **{"fa": r" (?:\w+ )?نيست(?!\w)", "ur": r" (?:\w+ )?نهيں(?!\w)", "bn": " (?:নয়|নন|না(?= |।|,|$))", "mr": " नाही"},
    **{"ta": " அல்ல", "te": " కాదు", "pl": " nie (?:jest|był)", "cs": " není", "sk": " nie je", "sv": " är inte"},
    **{"da": " er ikke", "no": " er ikke", "fi": " ei ole", "hu": " nem ", "ro": " nu (?:este|e)", "hr": " nije"},
    **{"sr": " nije", "uk": " не є", "bg": " не е", "el": " δεν ειναι", "he": " (?:לא|אינ[הו])", "sw": " si "},
    **{"vi": " không phải", "th": "ไม่ใช่", "az": "(?: \\w{1,6})? (?:deyil|yox)", "kk": "(?: \\w{1,6})? емес"},
    **{"uz": "(?: \\w{1,6})? emas", "ky": "(?: \\w{1,6})? эмес", "tt": " түгел", "mn": " биш", "kn": " (?:ಅಲ್ಲ|ಇಲ್ಲ)"},
    **{"ml": " ?അല്ല", "gu": " નથી", "pa": " ਨਹੀਂ", "am": " (?:አይደለ\\w*|ሳይሆን)", "ne": " (?:होइन|हैन)", "my": " ?မဟုတ်"},
    **{
        "si": " (?:නොවේ|නෙවෙයි|නොව)",
        "ka": " (?:არ არის|კი არა)",
        "hy": " չէ",
        "eu": " ez ",
        "sl": " ni(?= )",
        "et": " ei ole",
    },
    **{"lt": " nėra", "lv": " nav", "mk": " не е", "is": " er ekki", "af": " is nie", "fil": " ay hindi"},
    **{"sq": " nuk (?:është|ishte)", "ja": "(?:では|じゃ)な[いく]", "or": " ନୁହେଁ", "jv": " dudu"},
}
# In these languages it is known how an answer is denied.
DENIALS = _NEGATED_IN.keys() | _DENIED_IN.keys() | set("en fr es pt it de nl id ar ru tr hi ko zh ja yue".split())
# After the answer. What is next must be what was asked for: "Venus is not the nearest" does not deny an answer.
_DENIED = re.compile(
    r"(?: (?:(?:is|are|was|were)(?: not| never|n t)|(?:n est|ne sont|n était) pas|n[aã]o (?:é|são|foi|era)|no "
    r"(?:es|son|fue)|non (?:è|sono|fu)|(?:ist|sind|war|waren|is|zijn|was)(?: es| het)? (?:nicht|niet|kein\w*|geen)"
    r"|ليست?|لم [يت]كن|bukan(?:lah)?|-? ?(?:это )?не(?: является| был[аио]?)?)\b|并?不(?:是|对)|并非)"
    "(?! (?:only|just|seulement|só|apenas|s[oó]lo|solamente|nur|alleen|только|hanya|فقط))"
    rf"(?: ?(?:(?:{_SMALL}) )*(?P<next>[^ .,;!?।。、¶]+))?|"
    r"(?: \w{1,6})? değil| (?:(?:शहर|नदी|देश) )?नहीं(?= (?:है|हैं|था|थे|थी|बल्कि)| ?[,.;।¶]|$)|"
    "[가-힣]{0,3} ?(?:아니(?!면)|아닌|아닙|아녜|말고)|"
    "[^ 。、,.]{0,3}(?:では(?:なく|ない(?!か|で|だ)|ありません(?!か))|じゃな[いく]|でな[いく]|以外)"
)

# "I don't think that it is", and "is wrong".
_DOUBTED = re.compile(
    r"\b(?:(?:\w*n t|not) (?:think|believe|say|guess)(?: that)?(?: (?:it|this|that))?(?: (?:s|is|was))?|"
    r"pas que(?: (?:ce soit|c est))?|no (?:creo|pienso|diría) que(?: (?:sea|es|fuera))?|"
    r"não (?:acho|creio|penso|acredito) que(?: (?:seja|é|fosse))?|non (?:credo|penso) che(?: (?:sia|è))?|"
    r"(?:glaube|denke) nicht,? dass(?: (?:es|das))?|(?:denk|geloof) niet,? dat(?: (?:het|dit))?|"
    rf"не (?:думаю|считаю),? что(?: это)?)(?: (?:{_SMALL}))* ?$"
)
_CALLED_WRONG = re.compile(
    r" (?:(?:is|was|would be|s) (?:clearly )?(?:wrong|incorrect|false|not (?:right|correct))"
    r"|est (?:faux|fausse|incorrecte?)|es (?:incorrect|errón|fals)[oa]|(?:é|está) (?:incorret|errad|fals)[oa]"
    r"|è (?:sbagliat|errat|fals)[oa]"
    r"|(?:ist|wäre) (?:falsch|unrichtig)|is (?:fout|onjuist)|-? ?(?:это )?(?:неверно|неправильно|ошибочно)|yanlış"
    r"|salah|गलत है)(?!\w)(?! about)"
)


# e.g. is_negated("not bonn", 4, 8, "en", "") → True
# e.g. is_negated("it is bonn", 6, 10, "en", "") → False
# e.g. is_negated("i don't think it's bonn", 19, 23, "en", "") → True
def is_negated(text: str, start: int, end: int, language: str, question: str) -> bool:
    around = text[max(0, start - 48) : start], text[end : end + 64]
    before, after = (re.sub(r"[\s\"'“”«»„()\[\]「」『』《》]+", " ", part) for part in around)
    own, small = _NEGATED_IN.get(language, "(?!)"), f"{_SMALL}|{_SMALL_IN.get(language, '(?!)')}"
    negated = rf"(?:{_NEGATED}|(?<!\w)(?:{own}))(?: (?:{small}))* ?$"
    if re.match(_DENIED_IN.get(language, "(?!)"), after) or _CALLED_WRONG.match(after) or _DOUBTED.search(before):
        return True
    denied = _DENIED.match(after)
    following = (denied["next"] or "")[: None if spaced(language) else 2] if denied else ""
    return bool(re.search(negated, before) or (denied and (following in question or not question)))
