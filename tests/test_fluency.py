from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest

from xlift.languages import LANGUAGES
from xlift.rating import fluency
from xlift.rating.fluency import NO_LIST, rate_fluency, repeated_ngrams, signature, tokens_of
from xlift.records import Rated

CLEAN = {
    "en": "Don't water the ferns every day: they like moist soil, but their roots rot when it stays wet. Maria's "
    "well-known trick is to lift the pot first; if it feels light, it's time for a drink.",
    "fr": "L'eau du robinet convient à la plupart des plantes, mais laissez-la reposer une nuit. Aujourd'hui, Camille "
    "n'arrose qu'une fois par semaine : « c'est bien assez », dit-elle, et ses fougères s'en portent à merveille.",
    "pt": "Antes de regar as samambaias, sinta o peso do vaso: se estiver leve, é hora de dar água. Dona Lurdes diz "
    "que as plantas gostam de sombra e de ar fresco, e que o copo d'água da manhã lhes chega.",
    "es": "Antes de regar los helechos, levante la maceta: si pesa poco, ya toca darle agua. ¿Y en invierno? Entonces "
    "basta con regarla una vez por semana, sin mojar las hojas, según cuenta Ramón.",
    "it": "Prima di annaffiare le felci, solleva il vaso: se è leggero, è ora di dare acqua. Nell'inverno basta una "
    "volta alla settimana; l'importante è che la terra non resti mai fradicia, dice Giulia.",
    "de": "Bevor du den Farn gießt, hebe den Blumentopf an: Ist er leicht, braucht die Pflanze Wasser. Im Winter "
    "genügt eine wöchentliche Wassergabe, sagt Frau Schneider, denn die Wurzeln vertragen keine Staunässe.",
    "nl": "Til de bloempot op voordat je de varens water geeft: als hij licht is, heeft de plant dorst. In de winter "
    "is één keer per week genoeg, want de wortels kunnen niet tegen natte voeten, zegt buurvrouw Anneke.",
    "sv": "Lyft krukan innan du vattnar ormbunkarna: är den lätt behöver växten vatten. På vintern räcker det med en "
    "gång i veckan, eftersom rötterna inte tål att stå blöta, säger grannen Karin.",
    "ru": "Прежде чем поливать папоротник, приподнимите горшок: если он лёгкий, растению пора пить. Зимой достаточно "
    "одного раза в неделю, потому что корни не любят сырости, говорит наша соседка Анна Петровна.",
    "uk": "Перш ніж поливати папороть, підніміть горщик: якщо він легкий, рослині час пити. Узимку досить одного разу "
    "на тиждень, бо коріння не любить вогкості, каже наша сусідка Оксана.",
    "pl": "Zanim podlejesz paproć, podnieś doniczkę: jeśli jest lekka, roślina potrzebuje wody. Zimą wystarczy raz w "
    "tygodniu, bo korzenie nie lubią wilgoci, mówi nasza sąsiadka Hanna.",
    "tr": "Eğrelti otunu sulamadan önce saksıyı kaldırın: hafifse bitkinin suya ihtiyacı vardır. Kışın haftada "
    "bir kez yeterlidir, çünkü kökler ıslaklığı sevmez, diyor Ankara'nın eski bahçıvanlarından Ayşe Hanım.",
    "fi": "Nosta ruukkua ennen kuin kastelet saniaista: jos se on kevyt, kasvi tarvitsee vettä. Talvella riittää "
    "kerran viikossa, koska juuret eivät siedä märkyyttä, sanoo naapurimme Liisa.",
    "id": "Sebelum menyiram tanaman pakis, angkatlah potnya: kalau terasa ringan, tanaman itu perlu air. Pada musim "
    "hujan cukup sekali seminggu, karena akarnya tidak tahan basah, kata Ibu Ratna.",
    "vi": "Trước khi tưới cây dương xỉ, bạn hãy nhấc chậu lên: nếu chậu nhẹ thì cây đang cần nước. Mùa đông chỉ cần "
    "tưới mỗi tuần một lần vì rễ cây không chịu được đất ướt, cô Lan nói.",
    "ar": "قبل أن تسقي النبات ارفع الإناء قليلا، فإن كان خفيفا فهو يحتاج إلى الماء. وفي الشتاء تكفي مرة واحدة في "
    "الأسبوع، لأن الجذور لا تحب الرطوبة الكثيرة، كما تقول جارتنا ليلى.",
    "hi": "पौधे को पानी देने से पहले गमला उठाकर देखिए, अगर वह हल्का लगे तो पानी की ज़रूरत है। सर्दियों में हफ़्ते में एक "
    "बार पानी देना काफ़ी है, क्योंकि जड़ों को ज़्यादा नमी अच्छी नहीं लगती।",
    "el": "Πριν ποτίσετε το φυτό, σηκώστε τη γλάστρα: αν είναι ελαφριά, χρειάζεται νερό. Τον χειμώνα αρκεί μία φορά "
    "την εβδομάδα, γιατί οι ρίζες δεν αντέχουν την υγρασία, λέει η Ελένη.",
    "zh": "给植物浇水之前，先把花盆拿起来试试重量：如果觉得很轻，就说明它缺水了。"
    "冬天每周浇一次就够了，因为根不喜欢太湿的土。",
    "ja": "植物に水をやる前に、鉢を持ち上げてみましょう。軽ければ水が必要です。"
    "冬は週に一度で十分で、根は湿りすぎた土を好みません。",
    "ko": "화분에 물을 주기 전에 먼저 들어 보세요. 가볍게 느껴지면 물이 필요하다는 뜻입니다. "
    "겨울에는 일주일에 한 번이면 충분해요.",
    "th": "ก่อนรดน้ำต้นไม้ ลองยกกระถางขึ้นดูก่อน ถ้ารู้สึกว่าเบาแสดงว่าต้นไม้ต้องการน้ำ ในฤดูหนาวรดสัปดาห์ละครั้งก็พอ",
}
LISTED = sorted(CLEAN.keys() - NO_LIST)


def rate(text: str, language: str = "en", **more: Any) -> Rated:
    rated = rate_fluency({"text": text, "language": language, **more})
    assert (rated[0] is None) == bool(rated[2]), "a missing value has a reason, and only a missing value"
    json.dumps(rated[1], ensure_ascii=False).encode()
    return rated


def value(text: str, language: str = "en", **more: Any) -> float | None:
    return rate(text, language, **more)[0]


def signals(text: str, language: str = "en", **more: Any) -> list[str]:
    return list(rate(text, language, **more)[1]["signals"])


def misspelt(text: str, share: float) -> str:
    """The text with two neighbouring letters swapped and one doubled in a share of its longer words."""
    source = random.Random(7)

    def change(found: re.Match[str]) -> str:
        word = found[0]
        at = source.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] * 2 + word[at + 2 :] if source.random() < share else word

    return re.sub(r"[\w\u0900-\u0963]{4,}", change, text)


@pytest.mark.parametrize("language", CLEAN)
def test_clean_text_has_no_signal(language: str) -> None:
    number, detail, _ = rate(CLEAN[language], language, finish_reason="stop")
    assert (number, detail["signals"]) == (2, [])
    assert value(CLEAN[language], language, finish_reason="length") == 2, "it ends with a sentence"


@pytest.mark.parametrize("language", LISTED)
def test_the_more_words_are_misspelt_the_more_are_unknown(language: str) -> None:
    shares = [rate(misspelt(CLEAN[language], share), language)[1]["unknown"] for share in (0.0, 0.5, 1.0)]
    assert shares[0] < 0.1 < shares[2]
    assert shares == sorted(shares)


@pytest.mark.parametrize("language", [code for code in LISTED if code not in ("vi", "hi")])
def test_misspelt_text_is_not_fluent(language: str) -> None:
    number, detail, _ = rate(misspelt(CLEAN[language], 0.7), language)
    assert number in (0, 1)
    assert "unknown" in detail["signals"]


def test_gibberish_is_hardly_understandable() -> None:
    text = "The wother of prilling quams is ofte glimmed by storkish vendles, and no blarp snorves the yintle druppo."
    assert value(text, "en") == 0


@pytest.mark.parametrize("language", sorted(NO_LIST & CLEAN.keys()))
def test_without_a_list_no_word_is_unknown(language: str) -> None:
    assert rate(CLEAN[language], language)[1]["unknown"] is None


@pytest.mark.parametrize(
    ("language", "addition"),
    [
        ("en", " Ask Wladyslaw Grzybowski, Ngozi Okonkwo, Thandiwe Xulu or Zbigniew Wojciechowski."),
        ("fr", " Lancez `kubctl aplly -f fooxx.yml qwzx`, puis voyez https://exmpl.test/qzx/wvk?xqz=kqj et zxq_wvk."),
        ("de", "\n```python\nxqz = wvkq(zzxk)\nqqvw.plkj(xxzq, vvkk)\n```\n"),
        ("es", ' Como dicen allí: "the quick brown fox jumps over the lazy dog, and nobody ever found out why".'),
        ("ru", " См. wxqz, kqjv, zzvk и qqwx."),
        ("en", " El agua del grifo sirve para casi todas las plantas, pero conviene dejarla reposar una noche."),
        ("it", " Le famiglie più note (Polypodium vulgare, Asplenium trichomanes, Osmunda regalis) vivono nei boschi."),
        ("pt", " Custa 12km, 5ghz, 3xqz, 7wvk, 9zzq."),
    ],
)
def test_names_code_numbers_and_other_languages_are_not_unknown(language: str, addition: str) -> None:
    assert value(CLEAN[language] + addition, language) == 2


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("de", "Mitarbeitergespräch Küchentischgespräche Regierungserklärungen Gesundheitsbranche Straße"),
        ("nl", "keukentafelgesprek levensstandaard bloemenwinkel"),
        ("sv", "arbetsplatsmöte vintermorgon köksbordet"),
        ("tr", "evlerimizden kitaplarımızdaki gidebileceğimizi"),
        ("fi", "talossamme perusoikeuksia kirjastosta"),
        ("fr", "l'homme qu'il aujourd'hui d’accord jusqu’à"),
        ("it", "dell'anno un'amica c'è l’acqua"),
        ("es", "lavarla morderla comerlas"),
        ("id", "takarannya bukunya dibacakan"),
        ("ar", "وبالكتاب والمدرسة كِتَابٌ"),
        ("sr", "добар кућа dobar"),
        ("el", "λόγος δρόμος"),
    ],
)
def test_compounds_endings_and_apostrophes_are_words(language: str, words: str) -> None:
    assert [word for word in words.split() if fluency.is_word(word, language) is False] == []


def test_a_last_word_that_the_limit_cut_is_not_judged() -> None:
    text = "wobbly gardens need qxz and qvk more than grazblfrx"
    assert "grazblfrx" not in rate(text)[1]["unknown_words"]
    assert "grazblfrx" in rate(text + ".")[1]["unknown_words"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Here is why. " + "I do not know what to say about it. " * 12, "en"),
        ("Вот почему. " + "Я не знаю, что об этом сказать. " * 12, "ru"),
        ("答案如下。" + "我不知道该怎么说这件事。" * 12, "zh"),
        ("ตอบ " + "ฉันไม่รู้จะพูดอย่างไร" * 12, "th"),
        ("الجواب هو " + "لا أعرف ماذا أقول " * 12, "ar"),
        ("Well, ha" + " ha" * 60, "en"),
        ("Well, " + "ha" * 60, "en"),
        ("Oh nooo" + "o" * 400, "en"),
        ("Well then " + ". , " * 60, "en"),
        ("😂" * 80, "en"),
        ("- the same point again\n" * 12, "en"),
    ],
)
def test_a_loop_over_most_of_the_text_is_hardly_understandable(text: str, language: str) -> None:
    assert value(text, language) == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_loop_within_a_longer_text_is_a_flaw(language: str) -> None:
    loop = {"en": " and so on and on and" * 5 + ".", "zh": "就是这样的" * 6 + "。"}[language]
    number, detail, _ = rate(CLEAN[language] * 2 + loop, language)
    assert (number, detail["loop"] > 0) == (1, True)


def test_what_is_said_twice_is_a_flaw_and_thrice_is_worse() -> None:
    assert [value(CLEAN["fr"] * times, "fr") for times in (1, 2, 3)] == [2, 1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "Ha ha ha ha ha, that was a good one!",
        "No, no, no. Never, never, never!",
        "- You can use vinegar to clean glass.\n- You can use vinegar to soften towels.\n- You can use vinegar to "
        "remove rust.\n- You can use vinegar to kill weeds.\n- You can use vinegar to polish shoes.\n",
        "The river runs, the river sings,\nAnd nobody knows where it goes.\nIt carries leaves and little things,\nAnd "
        "nobody knows where it goes.\nAt night it wears a coat of stars,\nAnd nobody knows where it goes.\nIt hums "
        "along beneath the cars,\nAnd nobody knows where it goes.",
        "| Plant | Water |\n|-------|-------|\n| Fern | weekly |\n| Cactus | monthly |\n| Moss | daily |\n" + "-" * 50,
        "Chapter one " + "." * 60 + " 12 and chapter two is on page twenty.",
        "```html\n" + "<li><a href='x'>item</a></li>\n" * 30 + "```\nThis page shows a list with thirty equal items.",
    ],
)
def test_laughter_refrains_tables_and_lists_with_one_opening_are_fine(text: str) -> None:
    assert value(text) == 2


def test_loops_and_repeated_ngrams_agree_with_a_count_by_hand() -> None:
    assert repeated_ngrams(list("abcdefghij"), 4, 6) == (0.0, 0.0)
    assert repeated_ngrams(list("xyabcabcabc"), 4, 6)[0] == pytest.approx(9 / 11)
    words = list("abcdefghijklmnopqrstabcd")
    assert repeated_ngrams(words, 4, 6) == (0.0, pytest.approx(1 / 21))


def test_tokens_are_words_or_the_characters_of_unspaced_scripts() -> None:
    assert tokens_of("l'eau, 3 हिन्दी слов!") == ["l'eau", "3", "हिन्दी", "слов"]
    assert tokens_of("我用Python写") == ["我", "用", "Python", "写"]
    assert tokens_of("a" * 50) == ["a"] * 50


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Le caf\ufffd est ouvert tous les jours.", "fr"),
        ("Le café est \x07 ouvert tous les jours.", "fr"),
        ("Le café est \ud83d ouvert tous les jours.", "fr"),
        ("Le cafÃ© est ouvert tous les jours.", "fr"),
        ("Itâ€™s open every day of the week.", "en"),
        (
            "Он сказал: Ð¿Ñ€Ð¸Ð²ÐµÑ‚ и ушёл домой. Мы остались сидеть у окна и ещё долго смотрели на улицу, где он "
            "медленно шёл под дождём к старому мосту, не оглядываясь и ни о чём не жалея.",
            "ru",
        ),
        (
            "Он сказал: РїСЂРёРІРµС‚ и ушёл домой. Мы остались сидеть у окна и ещё долго смотрели на улицу, где он "
            "медленно шёл под дождём к старому мосту, не оглядываясь и ни о чём не жалея.",
            "ru",
        ),
        ("Сегодня очень хoрошая погода на улице.", "ru"),
        ("यह एक बहुत सpecific सवाल है और कठिन भी।", "hi"),
        ("Er sagte<0xE2> und ging dann nach Hause.", "de"),
        ("Er sagte▁das und ging dann nach Hause.", "de"),
    ],
)
def test_broken_characters_are_a_flaw(text: str, language: str) -> None:
    number, detail, _ = rate(text, language)
    assert (number, detail["signals"]) == (1, ["broken"])
    assert detail["examples"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251"])
def test_text_read_in_the_wrong_encoding_is_hardly_understandable(encoding: str) -> None:
    assert value(CLEAN["ru"].encode().decode(encoding, "replace"), "ru") == 0


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("요즘 AI로 글을 쓰는 사람이 많고 PC방도 여전히 인기입니다.", "ko"),
        ("Наш IT-отдел купил SMSку, Wi-Fi-роутер и 3D-принтер.", "ru"),
        ("新しいTシャツを3枚買って、Webサイトで色をくらべました。", "ja"),
        ("A layer of 5 μm needs a resistance of 3 kΩ and Δx below 2.", "en"),
        ("« À Ã… » est-il écrit ; l'été, « çà » et « là » : 20 °C.", "fr"),
        ("NÃO HÁ MAÇÃ NEM PÃES; a palavra “MAÇÃ” está aqui.", "pt"),
        ("تستخدم الشركة واجهة الAPI الجديدة مع خدمة بGoogle منذ سنوات.", "ar"),
        ("می‌خواهم کتاب‌های تازه را بخوانم و بعد به خانه بروم.", "fa"),
        ("👩‍👩‍👧 family time is the best time of the day ❤️", "en"),
        ("The limit fell within a letter of this word and so it ends with caf\ufffd", "en"),
    ],
)
def test_scripts_that_go_together_and_signs_of_other_languages_are_fine(text: str, language: str) -> None:
    assert rate(text, language)[1]["broken"] == 0.0


@pytest.mark.parametrize(
    ("end", "language", "is_cut"),
    [
        ("and then the old man went to the", "en", True),
        ("and then the old man went home.", "en", False),
        ("and then the old man said, “Go home!”", "en", False),
        ("**and then the old man went home.**\n", "en", False),
        ("What a lovely day it is today 😊", "en", False),
        ("- apples\n- pears\n- plums and", "en", True),
        ("Run this in your shell:\n```python\nprint(1)\n```", "en", False),
        ("Run this in your shell:\n```python\nprint('Hello.')", "en", True),
        ("他说今天的天气非常好。", "zh", False),
        ("他说今天的天气非常好，所以", "zh", True),
        ("क्या आप कल आएँगे या नहीं।", "hi", False),
        ("क्या आप कल आएँगे या", "hi", True),
        ("هل ستأتي غدا إلى البيت؟", "ar", False),
        ("Θα έρθεις αύριο στο σπίτι;", "el", False),
        ("Will you come to the house tomorrow;", "en", True),
        ("วันนี้อากาศดีมากและฉันกำลังจะ", "th", False),
    ],
)
def test_only_the_token_limit_cuts_and_only_within_a_sentence(end: str, language: str, is_cut: bool) -> None:
    assert rate(end, language, finish_reason="length")[1]["cut"] is is_cut
    assert not rate(end, language, finish_reason="stop")[1]["cut"]
    assert not rate(end, language)[1]["cut"]


def test_a_cut_end_is_no_sign_of_bad_fluency_and_a_loop_that_the_limit_ended_is() -> None:
    assert rate("Le train part à neuf heures du premier", "fr", finish_reason="length")[0] == 2
    assert rate("Le train part. " + "et puis encore " * 40, "fr", finish_reason="length")[0] == 0


@pytest.mark.parametrize(
    "leak",
    [
        "<start_of_turn>user", "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "[INST] Why?",
        "<<SYS>>", "</s>", "<eos>", "<unused12>", "\n### Response:\nSo", "\n\nassistant\n\nSo", ".assistant\n\nSo",
        "ишьassistant", "\nHuman: And why?", "\nUser: Merci\nAssistant: De rien", "[UNK]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("language", ["fr", "ru", "ja"])
def test_template_tokens_are_a_flaw(leak: str, language: str) -> None:
    text = CLEAN[language]
    assert signals((text[:-1] if leak[0] in ".и" else text) + leak, language)[-1] == "leaked"


@pytest.mark.parametrize(
    "text",
    [
        "User: Where is the station?\nAssistant: It is behind the old church.\nUser: Thanks!\nAssistant: My pleasure.",
        "Put `<|im_end|>` at the end of each turn, and `[INST]` before it.",
        "The template is this one, as the documentation says:\n```\n<start_of_turn>user\nHi<end_of_turn>\n```\nUse it.",
        "The price was <s>20 euros</s> and is now 15 euros.",
        "My assistant\nworks in the city and the user\nmanual is long.",
        "She is the assistant\nwho helped me yesterday.",
    ],
)
def test_dialogues_and_quoted_templates_are_fine(text: str) -> None:
    assert value(text) == 2


@pytest.mark.parametrize(
    ("text", "language", "flawed"),
    [
        ("Bonjour [Your Name], merci pour votre lettre du mois dernier.", "fr", True),
        ("Здравствуйте, меня зовут [Your Name], я пишу вам из города.", "ru", True),
        ("こんにちは、[Your Name]です。お手紙ありがとうございました。", "ja", True),
        ("Estimado {customer_name}, le escribo por el pedido de la semana.", "es", True),
        ("Gentile <insert name here>, le scrivo per la lettera di ieri.", "it", True),
        ("Sehr geehrte Frau XXXX, vielen Dank für Ihren Brief von gestern.", "de", True),
        ("Lorem ipsum dolor sit amet, and then the story goes on.", "en", True),
        ("Dear [Your Name], thank you for the letter that came last month.", "en", False),
        ("Dear [Your Name], thank you for the letter that came last month. I hope to see you soon.", "ru", False),
        ("Bonjour [votre nom], merci pour votre lettre du mois dernier.", "fr", False),
        ("Уважаемый [Имя], спасибо за письмо, которое пришло вчера.", "ru", False),
        ("Lieber [Name], vielen Dank für deinen Brief von letzter Woche.", "de", False),
        ("Voir [le titre](https://example.org) et la note [1] de ce texte.", "fr", False),
        ("Soit \\frac{name}{date} une fraction et {a, b} un ensemble fini.", "fr", False),
        ("Le pape Jean XXX n'existe pas, mais le roi Louis XIII, si.", "fr", False),
    ],
)
def test_placeholders_in_another_language_than_the_text_are_a_flaw(text: str, language: str, flawed: bool) -> None:
    assert value(text, language) == (1 if flawed else 2)


@pytest.mark.parametrize("language", ["en", "zh", "th", "ar"])
@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b\u200f"])
def test_an_empty_response_is_missing(text: str, language: str) -> None:
    assert rate(text, language)[::2] == (None, "empty response")


def test_too_short_is_missing_unless_a_signal_fired() -> None:
    assert value("Ottawa.", "en") is None
    assert value("东京。", "ja") is None
    assert value("42", "en") is None
    assert value("Ottawa.<|im_end|>", "en") == 1
    assert value("Ottawa lies on a river.", "en") == 2


@pytest.mark.parametrize("language", ["xx", "", "klingon"])
def test_an_unknown_language_is_missing(language: str) -> None:
    number, _, reason = rate(CLEAN["en"], language)
    assert (number, str(reason)[:16]) == (None, "unknown language")


def test_the_reply_language_decides() -> None:
    assert value(CLEAN["de"] + " [Your Name]", "en", reply_language="de") == 1
    assert value(CLEAN["en"] + " [Your Name]", "de", reply_language="en") == 2
    assert value(CLEAN["pt"], "pt-BR") == 2


@pytest.mark.parametrize("other", ["en", "fr", "ru", "ar", "zh"])
@pytest.mark.parametrize("language", ["en", "es", "tr", "ru", "hi"])
def test_fluent_text_in_the_wrong_language_is_fluent(language: str, other: str) -> None:
    assert value(CLEAN[other], language) == 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_can_be_rated(language: str) -> None:
    assert value(CLEAN.get(language, CLEAN["en"]) + "<|im_end|>", language) == 1


def test_a_rating_depends_on_its_record_alone() -> None:
    before = [rate(CLEAN[language], language) for language in CLEAN]
    assert [rate(CLEAN[language], language) for language in reversed(CLEAN)] == before[::-1]


def test_the_signature_names_version_and_resources() -> None:
    assert signature().startswith(f"fluency v{fluency.VERSION}|wordfreq ")
    assert "simplemma" in signature()


HOSTILE = [
    "a", "a-", "a.", "é-", "a@", "a_", "\\( ", "$$a ", "<a ", "<|a", "<s>a", "{name", "[Your ", "`", "```", "#a",
    "aбa", "a'", "一", "在AI", "ก", "....", "- ", " ", "\n", ". " + " " * 50, "\ufffd", "Ã©", "X", "(", "e\u0301\u0301",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_takes_less_than_two_seconds(unit: str) -> None:
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    for language in ("en", "ru"):
        rate("wxqz kqjv zzvk sind alles keine Wörter und нет слов.", language)
    started = time.process_time()
    for language in ("en", "ru"):
        rate(text, language, finish_reason="length")
    assert time.process_time() - started < 4


@pytest.mark.parametrize("letters", ["abcdefghij ", "abcdef\nghijklmnopqrstuvwxyz ", "абвгд ежзabc αβγ"])
def test_a_megabyte_of_random_words_takes_less_than_two_seconds(letters: str) -> None:
    source = random.Random(1)
    text = "".join(source.choice(letters) for _ in range(1_000_000))
    rate(text[:5_000], "de")
    started = time.process_time()
    rate(text, "de")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("de", "Frau Quimbel Saarvan und Herr Dorrik Talmeno besuchten Vonkar Ulbret und Pedda Nysol in Grelm."),
        ("de", "Olmar Trevik, Juna Balsek und Parrin Delvo spielten gegen Korvat Menil und Zelka Udrin."),
        ("fr", "La glycogénosynthétase et la phosphofructokinase régulent la néoglucogenèse hépatocytaire."),
        ("es", "La hipertrigliceridemia y la esteatohepatitis acompañan a la hiperhomocisteinemia."),
        ("pt", "A imunofenotipagem e a imunoeletroforese mostraram gamopatia e microalbuminúria."),
    ],
)
def test_names_and_terms_alone_do_not_make_a_text_unreadable(code: str, text: str) -> None:
    assert rate_fluency({"text": text, "language": code})[0] in (1, 2, None)


def test_a_short_text_full_of_names_is_readable_in_scripts_without_capitals() -> None:
    text = "التقى السيد أوتريفان دالوك والسيدة جيمرا يونتل مع كيبو مانو وراسمون هوجلين في دونداس."
    assert rate_fluency({"text": text, "language": "ar"})[0] == 1
