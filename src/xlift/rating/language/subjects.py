"""What a text speaks of, by its words: works and products, libraries, dishes, languages. There names may be foreign."""

from __future__ import annotations

import re
from functools import lru_cache

# Words for works, products and firms, by their beginnings: a list in a text that speaks of them is one of names.
_WORKS = re.compile(
    r"\b(?:film|movie|book|novel|song|album|game|series\b|apps?\b|brand|compan|band|magazin|pelícu|libro|novela|canci"
    r"|juego|serie|empresa|aplicaci|livre|roman|chanson|jeux?\b|série|entrepri|logiciel|livro|canç|jogo|aplicativ"
    r"|romanz|canzon|gioc|aziend|buch|bücher|lied|spiele?\b|marke\b|marken\b|unternehm|firm|boek|merk|bedrij|buku|lagu"
    r"|merek|perusahaan|aplikasi|phim|sách|bài hát|trò chơi|ứng dụng|thương hiệu|công ty|kitap|şarkı|oyun|dizi|marka"
    r"|şirket|uygulama|książ|powieś|piosenk|фильм|фільм|книг|роман|песн|песен|пісн|альбом|албум|филм|игр|сериал|серіал|бренд|компани"
    r"|компані|приложен|програм|программ|застосун|softwar|yazılım|perangkat lunak|phần mềm|бібліот|команд"
    r"|equipo|équipe|squadr|mannschaft|teams?\b|univers|artist|cantant|chanteu|sänger)"
    r"|فيلم|أفلام|افلام|كتاب|كتب|رواي|أغني|أغاني|لعبة|ألعاب|مسلسل|شرك|تطبيق|برنامج|فیلم|رمان|آهنگ|بازی|سریال|برند|برنامه"
    r"|फिल्म|फ़िल्म|किताब|पुस्तक|उपन्यास|गाने|गीत|ऐप|कंपन|ब्रांड"
    r"|映画|小説|書籍|名著|曲|歌|アルバム|ゲーム|アプリ|ドラマ|ブランド|会社|企業|作品|バンド|电影|電影|书|書|小说|专辑|游戏|应用|软件"
    r"|品牌|公司|乐队|영화|책|소설|노래|앨범|게임|앱|드라마|브랜드|회사|기업|밴드|ภาพยนตร์|หนัง|เพลง|เกม|แอป"
    r"|סרט|ספר|שיר|משחק|אפליקצי|אלבום|חברה|חברות|チーム|球队|팀|آلبوم|ألبوم|البوم|گانا|گانے|ফিল্ম|সিনেমা|চলচ্চিত্র|উপন্যাস|অ্যালবাম|গান|গেম"
    r"|एल्बम|एलबम|अल्बम|चित्रपट|ચિત્રપટ|ફિલ્મ|આલ્બમ|ਫਿਲਮ|ਐਲਬਮ|திரைப்பட|நாவல|ஆல்ப|பாடல்|சினிமா|సినిమా|చిత్ర|ఆల్బమ|నవల|ಚಲನಚಿತ್ರ|ಆಲ್ಬ|ಕಾದಂಬರಿ|ചിത്ര|സിനിമ"
    r"|ആൽബ|നോവൽ|චිත්‍රපට|ඇල්බම|ფილმ|ალბომ|რომან|სიმღერ|ჯგუფ|ֆիլմ|ալբոմ|վեպ|ταινί|άλμπουμ|μυθιστόρημα|τραγούδι|βιβλί|παιχνίδι"
    r"|ภาพยนต|อัลบั้ม|นวนิยาย|ហ្វីល|ភាពយន្ត|អាល់ប៊ុម|រូបភាពយន្ត|ຮູບເງົາ|ອະລະບ້ຳ|ရုပ်ရှင်|အယ်လ်ဘမ်|ဝတ္ထု|ፊልም|አልበም|ልብወለድ",
)


_OTHER_SCRIPT = re.compile("[\u0370-\u1cff\u2e80-\ud7ff]")


# e.g. ka: "ჯგუფმა The Dark Side of the Moon ალბომი 1973 წელს გამოუშვა." → 2
# e.g. ja: "1. Introduction\n2. The History of the Company\n3. Conclusion\n以上が目次です。" → 0
@lru_cache(maxsize=64)
def speaks_of_works(text: str) -> bool:
    """Whether a text speaks of works, products or firms; English in another script says nothing."""
    said = text.lower()
    return _WORKS.search(re.sub("[a-z]+", " ", said) if _OTHER_SCRIPT.search(said) else said) is not None


LIBRARIES = re.compile(
    r"\b(?:librar|package|framework|bibliot|libreri|paquet|pacot|pacchett|bibliotek|pustaka|thư viện|kütüphane|kitaplı"
    r"|библиот|бібліот|пакет|фреймв)|ライブラリ|パッケージ|フレームワーク|库|庫|框架|软件包|라이브러리|패키지|프레임워크|مكتب|إطار|کتابخانه"
    r"|लाइब्रेरी|पैकेज|ספרי|ไลบรารี",
    re.IGNORECASE,
)


# e.g. ru: "Установите библиотеку pandas и запустите программу." → 2
LIBRARY_BEFORE = re.compile(rf"(?:{LIBRARIES.pattern})\w{{0,5}}[\s:：«\"'`(（]{{0,3}}\Z", re.IGNORECASE)


DISHES = re.compile(
    "меню|блюд|рецепт|страв|ястия|јела|料理|メニュー|菜单|菜單|菜谱|菜譜|美食|메뉴|요리|أطباق|طبق|قائمة الطعام|غذا"
    "|کھانے|व्यंजन|पकवान|मेन्यू|খাবার|পদ|מנות|תפריט|πιάτ|μενού|συνταγ|เมนู|อาหาร"
)


# By script, what a language that is written in it is called behind "in", and anywhere.
_LANGUAGES = {
    "Cyrl": (
        "russe|ruso|russo|russisch|russischen|rosyjsk|rusky|ruštině|rusă|ryska",
        "russisch|rusça|tiếng nga|kirill|kyrill|cyril|cirill",
    ),
    "Kana": (
        "japonais|japonés|japonês|giapponese|japans|japani|japońsk|japonsky|japoneză",
        "japanisch|japonca|tiếng nhật|bahasa jepang|kanji",
    ),
    "Hang": ("coréen|coreano|koreaans|koreansk|korejsky|coreeană", "koreanisch|korece|tiếng hàn|bahasa korea|hangul"),
    "Arab": ("arabe|árabe|arabo|arabsk|arabisk|arabă", "arabisch|arapça|tiếng ả rập|bahasa arab|persisch"),
    "Deva": ("hindi|sanskrit|sánscrito", "sanskrit|devan"),
    "Hebr": ("hébreu|hebreo|ebraico|hebraico|hebreeuws|hebrejsk|ebraică", "hebräisch|ibranice"),
    "Thai": ("thaï|tailandés|tailandese|tailandês|thais|tajsk", "thailändisch|tayca|tiếng thái|bahasa thai"),
    "Grek": (
        "grec|griego|greco|grego|grieks|greck|řeck|grekisk|greacă",
        "griechisch|yunanca|tiếng hy lạp|bahasa yunani",
    ),
}
_CHINESE = "chinois|chino|cinese|chinês|chinees|chińsk|čínsk|kinesisk|chineză", "chinesisch|çince|tiếng trung|mandarin"
_LANGUAGES["Hani"] = tuple("|".join(both) for both in zip(_LANGUAGES["Kana"], _CHINESE, strict=True))  # type: ignore[assignment]
_NAMED = {
    script: re.compile(rf"\b(?:(?:auf|em|en|het|im|in|pe|po|på|v|w|în) (?:{behind})|{anywhere})", re.IGNORECASE)
    for script, (behind, anywhere) in _LANGUAGES.items()
}
_STEMS = {script: "|".join(both).split("|") for script, both in _LANGUAGES.items()}
NAMED_WITHIN = 60


# e.g. named_in("En japonais, on dit 水.", "Hani", 21) → True
# e.g. named_in("Le Japon est loin. 水", "Hani", 19) → False
def named_in(text: str, script: str, place: int) -> bool:
    """Whether a text names a language that is written in a script right before a place."""
    if script not in _NAMED:
        return False
    first = max(0, place - NAMED_WITHIN)
    # Hardly any place has one before it: a tenth of the time where a text has thousands of such words.
    near = text[first:place].lower()
    return any(stem in near for stem in _STEMS[script]) and _NAMED[script].search(text, first, place) is not None
