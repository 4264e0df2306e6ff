from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlift.languages import LANGUAGES
from xlift.rating.language import wordlists as word_lists
from xlift.rating.language.lcb import rate_lcb
from xlift.rating.language.masks import WORD, blank_out, mask
from xlift.rating.language.rater import rate_language, rate_text, signature
from xlift.rating.language.scripts import said_in
from xlift.rating.language.spans import foreign_spans
from xlift.rating.language.wordlists import (
    IN_LEXICON,
    LEXICONS,
    NEIGHBOURS,
    Vocabulary,
    evidence,
    frequencies,
    in_lexicon,
    listed,
    rivals,
    vocabulary,
    zipf,
)

TEXTS = {
    "en": "The leaves turn yellow because the days become shorter and colder.",
    "fr": "La lumière du soleil est diffusée par l'air, surtout la partie bleue.",
    "pt": "As folhas das árvores mudam de cor porque os dias ficam mais curtos.",
    "ru": "Листья желтеют, потому что дни становятся короче и холоднее.",
    "de": "Die Blätter werden gelb, weil die Tage kürzer und kälter werden.",
    "es": "Las hojas de los árboles cambian de color porque los días son más cortos.",
    "it": "Le foglie degli alberi cambiano colore perché le giornate si accorciano.",
    "nl": "De bladeren worden geel omdat de dagen korter en kouder worden.",
    "tr": "Günler kısalıp soğuduğu için ağaçların yaprakları sararır.",
    "ar": "تتغير ألوان الأوراق في الخريف لأن النهار يصبح أقصر.",
    "hi": "पतझड़ में पत्ते पीले हो जाते हैं क्योंकि दिन छोटे होने लगते हैं।",
    "zh": "秋天的时候，树叶会变成黄色和红色，因为白天变短了。",
    "ja": "秋になると日が短くなるので、木の葉は黄色や赤に変わります。",
    "ko": "가을이 되면 낮이 짧아지기 때문에 나뭇잎이 노랗게 변합니다.",
    "id": "Daun berubah menjadi kuning karena hari-hari menjadi lebih pendek dan dingin.",
    "vi": "Lá cây chuyển sang màu vàng vì ngày trở nên ngắn hơn và lạnh hơn.",
    "th": "ใบไม้เปลี่ยนเป็นสีเหลืองเพราะกลางวันสั้นลงและอากาศเย็นลง",
    "sw": "Majani hubadilika kuwa ya njano kwa sababu siku zinakuwa fupi na baridi zaidi.",
}


def spans(text: str, code: str) -> list[tuple[str, str]]:
    """What is marked as foreign: the words and their language."""
    found = rate_text(text, code)[1].get("spans", [])
    return [(text[span["start"] : span["end"]], span["language"]) for span in found]


@pytest.mark.parametrize("code", TEXTS)
def test_every_language_is_right_as_itself_and_wrong_as_english_or_french(code: str) -> None:
    value, detail, _ = rate_text(TEXTS[code], code)
    assert (value, detail["line_pass"], detail["word_pass"]) == (2, True, True)
    for other in {"en", "fr"} - {code}:
        assert rate_text(TEXTS[other], code)[0] == 0, other
        assert rate_text(TEXTS[code], other)[0] == 0, other


@pytest.mark.parametrize("code", sorted(set(TEXTS) - {"en"}))
def test_an_english_introduction_is_found_where_it_stands(code: str) -> None:
    text = f"Here is the answer to your question:\n\n{TEXTS[code]}\n{TEXTS[code]}"
    value, detail, _ = rate_text(text, code)
    assert value == 1
    assert (detail["switch"], detail["wrong_lines"], detail["line_pass"]) == (0, [1], False)
    assert 0.5 < detail["share"] < 1
    (span,) = detail["spans"]
    assert text[span["start"] : span["end"]].startswith("Here is the answer to your")
    assert (span["language"], "\n" in text[span["start"] : span["end"]]) == ("en", False)


@pytest.mark.parametrize(
    ("text", "code", "words", "language"),
    [
        ("Nous devons several questions importantes à régler avant la fin de la semaine.", "fr", "several", "en"),
        ("Precisamos de various documentos para abrir uma conta no banco da cidade.", "pt", "various", "en"),
        (
            "Eu não gosto de televisão e leio à noite, pero mi hermana prefiere ver la televisión, e não há mal nisso.",
            "pt",
            None,
            "es",
        ),
        ("Wir haben gestern a very nice evening with our friends verbracht und gelacht.", "de", None, "en"),
        ("Он увидел этот city впервые и очень удивился тому, как много там людей.", "ru", "city", "en"),
        ("これは very important な問題なので、よく考えてください。", "ja", "very important", "en"),
        ("这个问题 really 很难，我们需要更多时间来考虑。", "zh", "really", "en"),
        ("هذه المدينة beautiful جدا في الصيف وفي الشتاء أيضا.", "ar", "beautiful", "en"),
        ("यह शहर beautiful है और यहाँ के लोग बहुत अच्छे हैं।", "hi", "beautiful", "en"),
        ("Trái đất đang nóng lên do 暖 hóa toàn cầu và ô nhiễm không khí.", "vi", "暖", "zh"),
        (
            "Погода сегодня хорошая и тёплая, але завтра буде дощ і сильний вітер, поэтому мы остаёмся дома.",
            "ru",
            None,
            "uk",
        ),
    ],
)
def test_a_foreign_word_or_phrase_inside_a_sentence_is_seen(
    text: str, code: str, words: str | None, language: str
) -> None:
    assert rate_text(text, code)[0] == 1
    found = spans(text, code)
    assert [name for _, name in found] == [language]
    assert words is None or found[0][0] == words


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Pour cela, utilisez `print(value)` puis lancez le programme avec la commande suivante.", "fr"),
        ("Voici le code demandé :\n```python\nfor item in items:\n    print(item)\n```\nIl affiche tout.", "fr"),
        ("Tous les détails se trouvent sur https://example.org/the/full/story et dans la brochure.", "fr"),
        ("Escreva para contact.us@example.org ou ligue para nós durante a semana, por favor.", "pt"),
        ("William Shakespeare nasceu em Stratford-upon-Avon e escreveu muitas peças de teatro.", "pt"),
        ("O livro “The Old Man and the Sea” conta a história de um velho pescador cubano.", "pt"),
        ("Das maschinelle Lernen (machine learning) ist ein Teilgebiet der künstlichen Intelligenz.", "de"),
        ("Компания Google выпустила новый телефон, и он работает быстрее, чем iPhone.", "ru"),
        ("Это называется обучением с подкреплением (reinforcement learning) и применяется в играх.", "ru"),
        ("AIやPythonを使って、データをCSVファイルに保存する方法を説明します。", "ja"),
        ("ダッシュ（dash）は走る速さを表す言葉として使われています。", "ja"),
        ("한국에서는 Wi-Fi와 USB를 많이 사용하고 K-POP도 인기가 있습니다.", "ko"),
        ("पानी का रासायनिक सूत्र H2O है और यह 100 °C पर उबलता है।", "hi"),
        ("Il nostro team di marketing usa molto il computer e organizza un workshop ogni mese.", "it"),
        ('{"name": "Marie", "city": "une grande ville au bord de la mer", "age": 30}', "fr"),
        ("1. Premier point : la santé\n- Deuxième point : le travail\n* Troisième point : la famille", "fr"),
        ("La formule est $E = mc^2$, où $m$ est la masse et $c$ la vitesse de la lumière.", "fr"),
        ("Les angles α et β sont égaux, donc le triangle est isocèle et sa base est connue.", "fr"),
    ],
)
def test_what_no_reader_would_blame_is_not_blamed(text: str, code: str) -> None:
    assert (rate_text(text, code)[0], spans(text, code)) == (2, [])


@pytest.mark.parametrize(
    "text", ["", "   \n", "42", "ok", "https://example.org/a/page", "```\nprint(x);\n```", "🙂🙂", "Paris", "No."]
)
def test_too_little_to_tell_is_missing_with_a_reason(text: str) -> None:
    value, _, reason = rate_text(text, "fr")
    assert value is None
    assert reason


@pytest.mark.parametrize(
    ("text", "code"),
    [("Mário Casa Clara", "pt"), ("Bandung Jakarta Surabaya", "id"), ("東京大学", "ja"), ("Мария Иванова", "ru")],
)
def test_names_and_kanji_alone_are_never_wrong(text: str, code: str) -> None:
    assert rate_text(text, code)[0] in {2, None}


@pytest.mark.parametrize(
    ("code", "other"),
    [("pt", "es"), ("es", "pt"), ("id", "ms"), ("ru", "uk"), ("nl", "de"), ("de", "nl"), ("it", "es")],
)
def test_neighbours_are_told_apart_where_enough_is_said(code: str, other: str) -> None:
    said = {
        **TEXTS,
        "ms": "Saya kerap bercakap dengan kawan-kawan kerana mereka boleh membantu saya di pejabat.",
        "uk": "Листя жовтіє, тому що дні стають коротшими і холоднішими, а ночі довшими.",
    }
    assert rate_text(said[other], code)[0] in {0, None}
    assert rate_text(said[code], code)[0] == 2


@pytest.mark.parametrize("code", sorted(set(TEXTS) - {"en", "sw"}))
@pytest.mark.parametrize(
    "form",
    [
        '```json\n{{"title": "{0}", "open": true, "end": null}}\n```',
        '{{"title": "{0}",\n "open": false\n}}',
        "~~~markdown\n## {0}\n~~~",
        "{0}\n\n~~~\nfor (const item of items) {{ total += item.price; }} // add the price of every item\n~~~",
        "````python\nprint('the sum of all the items in the list')\n````\n{0}",
        "<pre>the quick sum of all the items = {{x}}</pre>\n<p>{0}</p>",
        "<script>let house = document.getElementById('with the garden');</script>{0}",
        "{0} #sunset #bestfriends #throwback",
        "{0} (@the.weather_girl, @dailynews)",
        "{0} ＃summer ＠weathergirl",
        "{0}#summer#bestfriends",
        "$ sudo apt-get install python3-pip\n$ pip install numpy\n\n{0}",
        "{0}\n\nSELECT name, age FROM users WHERE age > 30 ORDER BY name;\n\n{0}",
        "{0}\n\nfor item in items:\n    print(item.price)\n\n{0}",
        "git clone https://example.org/house.git\ncd house\nnpm install --save-dev\n{0}",
        "docker run -it ubuntu bash\n{0}",
        "{0}\n\nimport numpy as np\nvalues = np.array([1, 2, 3])\n\n{0}",
    ],
)
def test_code_formats_and_handles_are_not_blamed(form: str, code: str) -> None:
    assert rate_text(form.format(TEXTS[code]), code)[0] == 2


@pytest.mark.parametrize("code", ["fr", "ru", "ja"])
@pytest.mark.parametrize("form", ['```json\n{{"title": "{0}"}}\n```', "```text\n{0}\n```", "~~~\n{0}\n~~~"])
def test_english_that_is_read_in_a_fence_is_blamed(form: str, code: str) -> None:
    assert rate_text(form.format(TEXTS["en"]), code)[0] == 0


@pytest.mark.parametrize("code", ["fr", "ru", "ja"])
def test_hashtags_that_are_all_that_is_said_are_blamed(code: str) -> None:
    assert rate_text("#travel #beautiful #nature #mountains #friends #summer #happiness", code)[0] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("昨天下雨，我沒有出門，在家裡看了一本書。", 0),
        ("城市里的人越来越多，房子也越来越贵。", 0),
        ("春天来了，花开了，鸟儿在树上唱歌。孩子们在公园里玩。", 0),
        ("今日は雨でした。昨天下雨，我没有出门，在家里看书。明日は晴れるそうです。", 1),
        ("1. 第一，準備所有的蔬菜\n2. 第二，把水煮開\n3. 最後，放入調味料", 0),
        ("明天會更好，不要放棄希望，及時行樂。", 0),
        ("経済産業省資源政策課", 2),
        ("國學院大學と慶應義塾大学を卒業しました。", 2),
        ("株式会社髙島屋日本橋店は日本橋にあります。", 2),
        ("是非一度目的地まで。", 2),
        ("「我是中国人」は中国語の文です。これを日本語に訳してください。", 2),
    ],
)
def test_chinese_is_not_japanese_in_either_of_its_scripts(text: str, expected: int) -> None:
    value, detail, _ = rate_text(text, "ja")
    assert value in ({2, None} if text == "経済産業省資源政策課" else {expected})
    assert all(span["language"] == "zh" for span in detail.get("spans", []))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("hi", "काल रात्री खूप पाऊस पडला म्हणून आम्ही घरीच थांबलो आणि पुस्तके वाचली."),
        ("tr", "Dünən axşam çox güclü yağış yağdı, ona görə də biz evdə qaldıq və kitab oxuduq."),
        ("nl", "Gisteraand het dit baie gereën, daarom het ons by die huis gebly en boeke gelees."),
        ("pt", "Onte pola noite choveu moito e por iso ficamos na casa lendo os libros que mercamos."),
        ("bg", "Синоћ је падала јака киша, па смо остали код куће и читали књиге."),
        ("tr", "Düýn agşam güýçli ýagyş ýagdy, şonuň üçin biz öýde galdyk we kitap okadyk."),
        ("it", "Eri sera hà piossu assai, cusì simu stati in casa è avemu lettu qualchì libru nantu à u lettu."),
        ("pl", "Wczoraj wieczór fest lało, beztōż my ôstali we dōma i czytali ksiōnżki przi ôgniu."),
        ("de", "Geschter z Nacht het's fescht gschiffet, drum simmer diheime blibe und hei Büecher gläse."),
        ("en", "Yestreen it rained gey sair, sae we bided at hame an read some buiks aside the ingle wi the weans."),
        ("is", "Í gjárkvøldið regnaði tað nógv, so vit vóru heima og lósu bøkur, og børnini svóvu væl."),
        ("hi", "हिजो राति धेरै पानी पर्यो, त्यसैले हामी घरमै बस्यौं र किताबहरू पढ्यौं।"),
        ("zh", "尋晚落咗好大雨，所以我哋留喺屋企睇書，冇出街。"),
        ("id", "Mau bengi udane deres banget, mula awake dhewe padha ana omah lan maca buku nganti wengi."),
        ("sw", "Usiku washize kwagwa mvuyi ikulu, ndipo tidakhala m'nyumba ndi kuwerenga mabuku ambiri."),
    ],
)
def test_a_language_without_a_list_does_not_pass_for_its_relative(code: str, text: str) -> None:
    assert rate_text(text, code)[0] in (0, None)


SENTENCES = {
    "sk": "Zajtra ráno pôjdeme do lesa, aby sme nazbierali huby, a potom uvaríme veľkú polievku.",
    "cs": "Zítra ráno půjdeme do lesa, abychom nasbírali houby, a potom uvaříme velkou polévku.",
    "hr": "Sutra ujutro idemo u šumu skupljati gljive, a onda ćemo skuhati veliki lonac juhe.",
    "sl": "Jutri zjutraj gremo v gozd nabirat gobe, potem pa bomo skuhali velik lonec juhe.",
    "lt": "Rytoj rytą eisime į mišką rinkti grybų, o paskui išvirsime didelį puodą sriubos.",
    "lv": "Rīt no rīta iesim uz mežu lasīt sēnes, un pēc tam vārīsim lielu katlu zupas.",
    "et": "Homme hommikul läheme metsa seeni korjama ja siis keedame suure poti suppi.",
    "is": "Á morgun förum við út í skóg að tína sveppi og svo eldum við stóran pott af súpu.",
    "cy": "Bore fory byddwn yn mynd i'r goedwig i gasglu madarch ac yna byddwn yn coginio cawl.",
    "sq": "Nesër në mëngjes do të shkojmë në pyll për të mbledhur kërpudha dhe pastaj do të gatuajmë supë.",
    "fil": "Bukas ng umaga ay pupunta kami sa gubat upang manguha ng kabute at pagkatapos ay magluluto kami.",
    "gl": "Mañá pola mañá imos ir ao bosque coller cogomelos e despois faremos unha sopa ben grande.",
}
CYRILLIC = {
    "mk": "Утре наутро одиме во шумата да береме печурки, а потоа ќе зготвиме голем лонец супа.",
    "sr": "Сутра ујутру идемо у шуму да беремо печурке, а онда ћемо скувати велики лонац супе.",
    "bg": "Утре сутринта отиваме в гората да берем гъби, а после ще сготвим голяма тенджера супа.",
}


@pytest.mark.parametrize("sentences", [SENTENCES, CYRILLIC])
def test_prose_is_right_as_itself_and_never_right_as_a_relative_or_a_stranger(sentences: dict[str, str]) -> None:
    for code, text in sentences.items():
        assert rate_text(text, code)[0] == 2, code
        assert {other for other in sentences if other != code and rate_text(text, other)[0] in {1, 2}} == set(), code


@pytest.mark.parametrize("code", sorted({**SENTENCES, **CYRILLIC}))
def test_a_sentence_in_any_language_is_found_between_others_on_its_line(code: str) -> None:
    added = (SENTENCES | CYRILLIC)[code]
    for expected in ("de", "vi", "th", "en"):
        text = f"{TEXTS[expected]} {added} {TEXTS[expected]}"
        value, detail, _ = rate_text(text, expected)
        assert value in {0, 1}, expected
        found = sum(max(0, min(s["end"], len(text)) - s["start"]) for s in detail["spans"])
        assert found >= 0.8 * len(added), expected


@pytest.mark.parametrize(
    "added",
    ["ኑ አብረን ወደ ገበያ እንሂድ", "ພວກເຮົາໄປຕະຫຼາດນຳກັນ", "យើងទៅផ្សារជាមួយគ្នា", "ဈေးကို အတူသွားကြစို့", "අපි කඩේට යමු", "ਆਓ ਬਾਜ਼ਾਰ ਚੱਲੀਏ"],
)
def test_every_script_is_another_script(added: str) -> None:
    for code in ("en", "ru", "ar", "ja"):
        value, detail, _ = rate_text(f"{TEXTS[code]} {added}", code)
        assert value == 1
        assert TEXTS[code][-4:] not in {span["language"] for span in detail["spans"]}
        assert detail["spans"][0]["start"] >= len(TEXTS[code])


def test_japanese_in_chinese_is_japanese_with_its_kanji() -> None:
    text = TEXTS["zh"] + "私は毎日図書館で日本語を勉強しています。" + TEXTS["zh"]
    assert spans(text, "zh") == [("私は毎日図書館で日本語を勉強しています", "ja")]
    assert rate_text(TEXTS["ja"], "zh")[0] == 0


@pytest.mark.parametrize(
    ("word", "code"),
    [
        *(("together", code) for code in ("fr", "hu", "nl", "pt", "vi", "ro", "sl", "lt", "et", "cy")),
        *(("vêtements", "fi"), ("kahvaltı", "fr"), ("özgürlük", "it"), ("amistad", "de"), ("gemeinsam", "fr")),
    ],
)
def test_one_word_of_another_language_is_found(word: str, code: str) -> None:
    own = (TEXTS | SENTENCES | {"hu": HUNGARIAN, "ro": ROMANIAN, "fi": FINNISH})[code]
    words = own.split(" ")
    text = " ".join([*words[:4], word, *words[4:]])
    assert rate_text(own, code)[0] == 2
    assert [found for found, _ in spans(text, code)] == [word]


@pytest.mark.parametrize(
    ("word", "code"), [("dítě", "en"), ("gemeinsam", "fr"), ("together", "it"), ("kahvaltı", "de")]
)
def test_a_foreign_word_alone_on_its_line_is_found_wherever_it_stands(word: str, code: str) -> None:
    for lines in ([word, TEXTS[code]], [TEXTS[code], word, TEXTS[code]], [TEXTS[code], word, TEXTS[code], word]):
        assert [found for found, _ in spans("\n\n".join(lines), code)] == [word] * lines.count(word)


HUNGARIAN = "Holnap reggel elmegyünk az erdőbe gombát szedni, aztán főzünk egy nagy fazék levest."
ROMANIAN = "Mâine dimineață mergem în pădure să culegem ciuperci, apoi gătim o oală mare de supă."
FINNISH = "Huomenna aamulla menemme metsään poimimaan sieniä ja sitten keitämme ison kattilan keittoa."


def test_swahili_is_known_by_its_common_words() -> None:
    assert rate_text("Jana usiku mvua kubwa ilinyesha, kwa hiyo tulikaa nyumbani na kusoma vitabu.", "sw")[0] == 2
    assert rate_text("Last night it rained hard, so we stayed at home and read our books.", "sw")[0] == 0


@pytest.mark.parametrize("code", sorted(set(TEXTS) - {"en", "sw", "th"}))
@pytest.mark.parametrize(
    "name",
    [
        "{0}\n- Google Drive: {0}\n- Apple Pay: {0}",
        "{0}\nGoogle Drive：{0}",
        "{0} (Gone with the Wind and Other Tales of the Old South)",
        "{0} (Taraxacum officinale)",
        "{0} — Taraxacum officinale.",
        "{0} — Homo sapiens.",
    ],
)
def test_names_of_products_works_and_species_are_not_blamed(name: str, code: str) -> None:
    assert rate_text(name.format(TEXTS[code]), code)[0] == 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "For dinner there is bouillabaisse, coq au vin and tarte aux pommes, with a glass of cider."),
        ("en", "You can order tagliatelle al ragù or melanzane alla parmigiana in this restaurant."),
        ("en", "She wrote Cien poemas de la noche, El jardín de los abuelos and Crónica de una casa vacía."),
        ("en", "Her songs include Je ne veux plus dormir and Les oiseaux de la ville, which are well known."),
        ("es", "En el menú hay quiche lorraine y tarte aux pommes, todo muy rico y barato."),
        ("de", "Ich mag die Filme La vita è bella, Les Intouchables und Todo sobre mi madre sehr gern."),
    ],
)
def test_foreign_dishes_and_works_named_in_a_sentence_are_not_blamed(code: str, text: str) -> None:
    assert rate_text(text, code)[0] == 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The recipe is easy. Primero se corta la cebolla y se fríe en aceite. Then add the tomatoes."),
        ("en", "For dinner, mezclar la harina con el agua y dejar reposar una hora before baking it."),
        ("en", "The film is called Amélie. C'est l'histoire d'une jeune femme qui veut changer la vie des autres."),
        ("en", "Sehr geehrte Damen und Herren, I am writing about the menu of your restaurant."),
        ("fr", "La recette est simple. Luego se añade el arroz y se cuece durante veinte minutos. Bon appétit !"),
        ("es", "La receta es fácil. Aggiungere il sale e mescolare bene per dieci minuti. Luego se sirve frío."),
    ],
)
def test_sentences_of_another_language_about_dishes_and_works_are_blamed(code: str, text: str) -> None:
    assert rate_text(text, code)[0] in {0, 1}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("材料：豚肉、人参、玉葱、醤油、味醂、砂糖、塩、胡椒、胡麻油", {2}),
        ("氏名：山田太郎\n住所：大阪府大阪市北区梅田\n職業：会社員\n趣味：読書、映画鑑賞、登山", {2}),
        ("優點：價格便宜、品質優良、使用方便。缺點：體積較大、重量較重。", {0}),
        ("政府宣布提高最低工資，預計明年一月實施", {0}),
        ("京都", {None}),
    ],
)
def test_japanese_without_kana_is_told_from_chinese_by_its_words(text: str, values: set[int | None]) -> None:
    assert rate_text(text, "ja")[0] in values


_WORKS = "1. The Silence of the Lambs\n2. Back to the Future\n3. The Lion King"


@pytest.mark.parametrize(
    ("code", "before"),
    [
        ("es", "Mis películas favoritas son estas y las he visto muchas veces:"),
        ("fr", "Voici mes films préférés, que j'ai vus plusieurs fois avec mes amis :"),
        ("ru", "Вот мои любимые фильмы:"),
        ("hi", "मेरी पसंदीदा फिल्में:"),
        ("ja", "好きな映画です:"),
        ("ko", "좋아하는 영화:"),
        ("zh", "我最喜欢的电影："),
        ("ar", "هذه أفلامي المفضلة:"),
    ],
)
def test_a_list_of_titles_is_not_blamed(code: str, before: str) -> None:
    assert rate_text(f"{before}\n{_WORKS}", code)[0] == 2


@pytest.mark.parametrize("code", sorted(set(TEXTS) - {"en", "sw", "th"}))
def test_an_english_list_in_capitals_is_blamed(code: str) -> None:
    items = "1. Saving\n2. Investing\n3. Insurance\n4. Retirement Planning\n5. Debt"
    assert rate_text(f"{TEXTS[code]}\n{items}", code)[0] in {0, 1}


@pytest.mark.parametrize("code", sorted(set(TEXTS) - {"en", "sw", "th"}))
@pytest.mark.parametrize("heading", ["THE IMPORTANCE OF SLEEP", "BENEFITS OF REGULAR EXERCISE"])
def test_an_english_heading_in_capitals_is_blamed(heading: str, code: str) -> None:
    assert rate_text(f"{heading}\n\n{TEXTS[code]} {TEXTS[code]}", code)[0] == 1


@pytest.mark.parametrize("code", sorted(set(TEXTS) - {"en", "sw", "th"}))
def test_a_quotation_in_the_expected_language_speaks_for_it(code: str) -> None:
    value, detail, _ = rate_text(f"A: “{TEXTS[code]}” (The leaves turn yellow.)", code)
    assert value == 1
    assert [span["language"] for span in detail["spans"]] == ["en"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("zh", "《Gone with the Wind》是一部著名的小说。"),
        ("ja", "「The Catcher in the Rye」を読みました。"),
        ("ru", "Роман «The Catcher in the Rye» я уже прочитал."),
        ("ar", "يعمل البرنامج على Windows وLinux وUSB-C ولـAndroid."),
        ("he", "האפליקציה עובדת בWindows והAndroid וגם בUSB."),
        ("it", "Studiò alla Ilvermorny School of Witchcraft and Wizardry per sette anni."),
        ("tr", "Spotify'ın listeleri ve Ankara'da açılan Oxford School of Music'in kursları çok sevildi."),
        ("fr", "Plusieurs logiciels existent :\n1. Humanity : ce logiciel gère les horaires de toute l'équipe."),
        ("de", "Der Anime (鬼滅の刃 / Kimetsu no Yaiba auf Japanisch) läuft seit Jahren im Fernsehen."),
        ("ja", "ファイル名は「売上」ではなく売上報告_2023-12.xlsxです。新しいiPadも買いました。"),
        ("bg", "Файлът Отчет_2024.xlsx е на диска, а (/ˌhɪməˈleɪə/) се чете така."),
        ("ru", "Слово происходит от греческого 'katharsis' и означает очищение души."),
        ("en", "1. Playa Blanca: a quiet place by the sea\n2. Lassen Forest is beautiful in the summer."),
    ],
)
def test_titles_and_names_inside_a_sentence_are_not_blamed(code: str, text: str) -> None:
    assert rate_text(text, code)[0] == 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("vi", "Anh ấy mang theo mấy lon nước và tin rằng con đang an toàn ở nhà."),
        ("it", "Il brand ha scelto un influencer per il nuovo target e lo staff ha fatto un brainstorming."),
        ("it", "Durante lo smart working abbiamo fatto un brunch con tutta la famiglia."),
        ("pt", "O bullying nas escolas é um problema sério que precisa de atenção."),
        ("pt", "Trabalho em home office e faço networking em eventos de startup todos os meses."),
        ("es", "El bulldog francés y el border collie son perros pequeños y cariñosos."),
        ("de", "Das Meeting war lang, aber das Feedback zum Workflow war gut und die Deadline bleibt."),
        ("fr", "Le week-end, il fait du shopping et regarde un talk-show avec un milk-shake."),
        ("fr", "Au XXIᵉ siècle, la France changea beaucoup, la 1ʳᵉ fois surtout."),
        ("id", "Kami mengadakan meeting tentang budget dan deadline proyek itu di kantor."),
        ("zh", "请打开app，点击logo，然后输入密码。"),
        ("ko", "회사 logo를 왼쪽 위에 놓아 주세요."),
        ("nl", "Tijdens de due diligence keek het team naar de supply chain en de cash flow van het bedrijf."),
        ("pl", "W tym roku firma stawia na content marketing i szuka osoby na stanowisko product manager."),
        ("ro", "Echipa face fine-tuning și folosește data mining pentru fiecare use case al clienților."),
        ("sv", "På gymmet gör hon bench press och leg raises innan hon äter lite fast food med vännerna."),
        ("cs", "Komise četla jen články peer-reviewed a výsledky bylo vidět real-time na obrazovce."),
        ("hu", "A csapat due diligence után döntött, és a problem solving volt a legfontosabb téma."),
        ("uk", "Після due diligence ми підписали угоду з новим партнером у Києві."),
    ],
)
def test_borrowed_words_and_homographs_are_not_blamed(code: str, text: str) -> None:
    assert (rate_text(text, code)[0], spans(text, code)) == (2, [])


@pytest.mark.parametrize(
    ("code", "text", "word"),
    [
        ("vi", "Chúng ta cần improve kỹ năng giao tiếp mỗi ngày để làm việc tốt hơn.", "improve"),
        ("it", "Abbiamo avuto una beautiful giornata al mare con i nostri amici.", "beautiful"),
        ("fr", "Nous avons besoin de improve notre travail chaque jour.", "improve"),
        ("pt", "Ele comprou uma house nova perto da praia para a família.", "house"),
        ("es", "La gente de la ciudad es very simpática y alegre.", "very"),
        ("zh", "他们的新家 beautiful 极了，大家都喜欢。", "beautiful"),
        ("ru", "Conclusion: зима была холодной и снежной.", "Conclusion"),
        ("nl", "Het bedrijf heeft een beautiful aanpak voor de supply chain gemaakt.", "beautiful"),
        ("es", "1. Answer: sí, es posible con esta aplicación todos los días.", "Answer"),
        ("tr", "Toplumda patterns'ları görmek her zaman kolay değildir.", "patterns"),
    ],
)
def test_words_that_no_one_borrows_are_blamed(code: str, text: str, word: str) -> None:
    assert (rate_text(text, code)[0], spans(text, code)) == (1, [(word, "en")])


def test_reply_language_outranks_the_prompts_language() -> None:
    record = {"text": TEXTS["fr"], "language": "en", "reply_language": "fr"}
    assert rate_language(record)[0] == 2
    assert rate_language({**record, "reply_language": "de"})[0] == 0
    assert rate_language({**record, "reply_language": "fr-CA"})[0] == 2
    assert rate_language({**record, "reply_language": "xx"})[0] is None


def test_the_value_does_not_depend_on_what_was_rated_before() -> None:
    cases = [(text, code) for text in TEXTS.values() for code in ("fr", "ja", "ru")]
    first = [rate_text(*case) for case in cases]
    assert [rate_text(*case) for case in reversed(cases)] == first[::-1]


def test_the_value_does_not_depend_on_which_words_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(f"{text} {TEXTS['en']} {text}", code) for code, text in TEXTS.items()]
    remembered = [rate_text(*case) for case in cases]
    for code in LANGUAGES:
        vocabulary(code).clear()
    monkeypatch.setattr(Vocabulary, "REMEMBERED", 5)
    assert [rate_text(*case) for case in cases] == remembered
    assert all(len(vocabulary(code)) <= 5 for code in LANGUAGES)


def test_endless_words_are_not_remembered() -> None:
    endless = "abcdefghij" * 1_000
    assert rate_text(f"{TEXTS['fr']} {endless} {TEXTS['fr']}", "fr")[0] == 2
    assert max(map(len, vocabulary("fr"))) <= Vocabulary.LONGEST


@pytest.mark.parametrize("code", ["fr", "ru", "ja", "th"])
def test_hostile_text_is_rated_in_linear_time(code: str) -> None:
    pieces = [
        "a",
        "(",
        '"',
        "`",
        "<a ",
        "$",
        "\\",
        "@",
        "a.",
        "the ",
        "я",
        "愛",
        "\u202e",
        "\x00",
        "\ud800",
        "_",
        "\n",
        "A1 ",
    ]
    for piece in pieces:
        began = time.process_time()
        rate_text(TEXTS[code] + piece * (300_000 // len(piece)), code)
        assert time.process_time() - began < 20, piece


# What is apt in another language, and beside it what is not: of each kind the same words elsewhere.
APT = {
    "units": ("es", "El paquete pesa 10 lb y mide 2 ft 3 in.", "El paquete pesa 10 boxes and it is in the kitchen."),
    "menu": (
        "en",
        "Menu\n- Soupe à l'oignon\n- Tarte aux pommes\nAll dishes are served with bread.",
        "Menu\n- Coupez les oignons en petits morceaux\n- Ajoutez le sel\nEnjoy.",
    ),
    "cited": (
        "ru",
        "Прошедшее время английского глагола go — went.",
        "Прошедшее время этого глагола всегда went вчера.",
    ),
    "named": ("pt", "Em japonês diz-se ありがとう para agradecer.", "No Japão todos dizem ありがとう para agradecer."),
    "reference": (
        "fr",
        "À lire aussi :\nSmith, J. (2019). The Effects of Sleep. Springer.",
        "À lire aussi : The Effects of Sleep on our Memory.",
    ),
    "album": ("ka", "ჯგუფმა The Dark Side of the Moon ალბომი გამოუშვა.", "ჯგუფმა it was very good ალბომი გამოუშვა."),
    "function": (
        "it",
        "Usa la funzione print() per mostrare il testo.",
        "Usa la funzione to print per mostrare il testo.",
    ),
    "gloss": ("de", "Deep learning (tiefes Lernen) ist ein Fach.", "Good morning (guten Morgen) sagen wir ihm heute."),
    "loan": ("en", "He has a certain je ne sais quoi.", "He has a certain mais nous ne savons pas comment."),
}


@pytest.mark.parametrize("kind", APT)
def test_what_is_apt_in_another_language_is_not_blamed_and_what_looks_like_it_is(kind: str) -> None:
    code, apt, blamed = APT[kind]
    assert [rate_text(text, code)[0] == 2 for text in (apt, blamed)] == [True, False]


PIDGIN = "Make we go house now, food don ready and everybody dey wait for you."


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (PIDGIN, "en"),
        ("Bugun men oilangiz uchun mazali taom tayyorlashni tushuntiraman.", "tr"),
        ("ሎሚ ንስድራ ዝኸውን ጥዑም ምግቢ ከመይ ጌርካ ከም እትሰርሕ ክገልጽ እየ።", "am"),
        ("आज हम बताएब कि परिवार खातिर स्वादिष्ट खाना कइसे बनावल जाला।", "hi"),
        ("Güei voi esplicate cómo facer una bona comida pa la familia.", "es"),
    ],
)
def test_a_short_text_in_a_relative_does_not_pass(text: str, code: str) -> None:
    assert rate_text(text, code)[0] is None


def test_masks_keep_offsets() -> None:
    text = "Voir `code` et https://a.org/b, <b>gras</b>, E_2, $x$ « ici » İ"
    assert len(mask(text)) == len(text)
    assert "code" not in mask(text)
    assert blank_out("abcdef", [(3, 5), (1, 4)]) == "a    f"


def test_a_mask_is_the_same_whatever_stands_around_it() -> None:
    parts = ["WHO", "iPhone", "E_2", "me@mail.org,", "d'accord", "XIV", "(NASA).", "a1b", "#tag", "x.com/page", "Tag;"]
    whole = mask("\n".join(parts) + " " + " ".join(parts) + "\t" + "\u3000".join(parts))
    assert whole.split() == [piece for part in parts * 3 for piece in mask(part).split()]
    assert mask("Été d'accord tag") == "Été d'accord tag"


def test_spans_are_the_same_with_weights_given_or_found() -> None:
    for text in (f"{TEXTS['fr']} {TEXTS['en']} {TEXTS['fr']}", f"{TEXTS['de']}\n“{TEXTS['en']}”", TEXTS["ru"]):
        said = said_in(text, mask(text), "fr")
        assert foreign_spans(said, vocabulary("fr").weigh(said.words)) == foreign_spans(said)


def test_the_tables_of_words_say_what_the_lists_say() -> None:
    for code in ("en", "de", "tr", "ar", "hi", "zh", "no"):
        known = frequencies(code)
        sample = list(known)[:: len(known) // 500]
        assert {word: zipf(word, code) for word in sample} == {w: math.log10(known[w]) + 9.0 for w in sample}
        assert math.isclose(word_lists.floor(code), max(1.0, math.log10(min(known.values())) + 8.5))
        assert [zipf(word + "qx", code) for word in sample] == [None] * len(sample)
    assert [listed(code) for code in ("fr", "hr", "no", "mr", "th", "xx")] == [True, True, True, False, False, False]


@pytest.mark.parametrize("code", LEXICONS)
def test_a_lexicon_stands_for_a_list_and_lets_none_of_its_words_speak_for_another_language(code: str) -> None:
    own = sorted(LEXICONS[code])
    assert listed(code)
    assert all(zipf(word, code) == IN_LEXICON for word in own)
    assert all(max(weight[2]) <= 0 for weight in vocabulary(code).weigh(own))
    assert zipf("qxqxqx", code) is None


def test_the_tables_of_forms_say_what_the_lexicons_say() -> None:
    from simplemma.strategies.dictionaries.stream_dictionary_factory import StreamDictionaryFactory
    from simplemma.strategies.dictionary_lookup import DictionaryLookupStrategy

    whole = DictionaryLookupStrategy(StreamDictionaryFactory())
    for code in ("en", "id", "hi"):
        for word in (word for text in TEXTS.values() for word in WORD.findall(text)):
            for form in (word, word.lower(), word.upper(), word.capitalize() + "’s"):
                assert in_lexicon(form, code) is (whole.get_lemma(form, code) is not None), (form, code)


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "one bit", "foreign"])
def test_a_damaged_table_is_made_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLIFT_CACHE", str(tmp_path))
    numbers, built = np.arange(5_000, dtype=np.uint64), []

    def build() -> np.ndarray:
        built.append(damage)
        return numbers

    assert list(word_lists._stored("some", build)) == list(word_lists._stored("some", build)) == list(numbers)
    (path,) = (tmp_path / "words").iterdir()
    sound = path.read_bytes()
    flipped = bytes([*sound[:999], sound[999] ^ 1]) + sound[1000:]
    damaged = {"missing": None, "empty": b"", "torn": sound[:-8], "one bit": flipped, "foreign": b"{}" * 99}[damage]
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    assert len(built) == 1
    assert list(word_lists._stored("some", build)) == list(numbers)
    assert (len(built), path.read_bytes()) == (2, sound)


def test_where_the_cache_cannot_be_written_words_are_known_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XLIFT_CACHE", str(tmp_path / "file"))
    assert list(word_lists._stored("some", lambda: np.arange(3, dtype=np.uint64))) == [0, 1, 2]
    assert "cannot be kept" in capsys.readouterr().err


def test_processes_that_make_a_table_at_once_all_read_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLIFT_CACHE", str(tmp_path))
    code = "from xlift.rating.language.wordlists import in_lexicon as i; print(i('rumah', 'id'), i('watermelon', 'id'))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].split() for process in running] == [["True", "False"]] * 4
    assert [path.name.split("-")[:2] for path in (tmp_path / "words").iterdir()] == [["forms", "id"]]


def test_evidence_is_a_ratio_of_frequencies() -> None:
    assert evidence("the", "fr", "en") > 2 > 0 > evidence("les", "fr", "en")
    assert evidence("xqzptk", "fr", "en") == 0
    assert in_lexicon("maison", "fr")
    assert in_lexicon("watermelon", "fr") is False
    assert in_lexicon("家", "ja") is None
    assert frequencies("xx") == {}
    assert all("en" in rivals(code) for code in ("fr", "tr", "vi"))
    assert {"pt", "es"} <= NEIGHBOURS[0]


def test_the_benchmarks_rule_is_its_definition() -> None:
    def rated(text: str, code: str) -> Any:
        return rate_lcb({"text": text, "language": code})

    assert rated(TEXTS["fr"], "fr")[0] == 2
    assert rated(f"{TEXTS['fr']}\n{TEXTS['en']}", "fr")[:1] == (0,)
    assert rated(f"{TEXTS['fr']}\n{TEXTS['en']}", "fr")[1] == {"line_pass": False, "share": 0.5}
    # Lines of fewer than five tokens are not looked at, and a response without others is skipped.
    assert rated("Yes, of course.", "fr")[0] is None
    # An English word counts in non-Latin scripts alone, from four letters on, in lower case.
    russian = "Он увидел этот {} впервые и очень удивился этому"
    assert [rated(russian.format(word), "ru")[0] for word in ("city", "CITY", "old")] == [1, 2, 2]
    assert rated(f"{TEXTS['fr']}\nNous avons several questions à régler.", "fr")[0] == 2
    assert [rated(TEXTS[code], code)[0] for code in ("zh", "ja")] == [2, 2]
    assert rated(TEXTS["zh"] + "这个 really 很难", "zh")[0] == 1


def test_the_signature_names_the_resources() -> None:
    assert all(part in signature() for part in ("language v", "wordfreq 3", "simplemma 2", "lid.176"))
