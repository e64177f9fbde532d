"""Made-up athletes of many scripts, in the app's Prisma-shaped table. One seed, one set of athletes."""

from __future__ import annotations

from typing import Iterable

from servers import Server

# By script: how given and family name are put together, by Postgres's format(); and four of each.
WESTERN, EASTERN, JOINED = "%1$s %2$s", "%2$s %1$s", "%2$s%1$s"

NAMES = [
    (WESTERN, "Anna Ben Chloe Dwayne", "O'Brien Smith-Jones McAllister St.John"),
    (WESTERN, "Zoë Søren Łukasz Çağla", "Müller Guðjónsdóttir Błaszczykowski Yılmaz"),
    (EASTERN, "Thị·Hằng Văn·Đức Ngọc·Ánh Quốc·Bảo", "Nguyễn Trần Lê Phạm"),
    (WESTERN, "Анна Олексій Љубица Жанар", "Иванова Їжакевич Ђорђевић Қасымов"),
    (WESTERN, "Ελένη Νίκος Άννα Γιώργος", "Παπαδόπουλος Αγγελίδης Χατζής Ψαρρά"),
    (WESTERN, "فاطمة محمد عائشة يوسف", "الحسن بنعلي الزهراني منصور"),
    (WESTERN, "נועם יעל דניאל שירה", "כהן לוי פרץ ביטון"),
    (WESTERN, "प्रिया अर्जुन दीपिका रोहित", "शर्मा पटेल सिंह अय्यर"),
    (WESTERN, "তানিয়া সাকিব রুমানা মেহেদী", "হোসেন রহমান আক্তার চৌধুরী"),
    (WESTERN, "தமிழ்செல்வி அருண் மீனா கார்த்திக்", "சுப்பிரமணியன் ராஜன் நாயகம் குமார்"),
    (JOINED, "娜 伟 秀英 子涵", "王 欧阳 陳 𠮷"),
    (JOINED, "翔太 さくら 健 カレン", "大坂 髙橋 佐々木 渡邊"),
    (JOINED, "민준 서연 지우 하은", "김 이 박 남궁"),
    (WESTERN, "สมชาย ปวีณา รัชนก เมย์", "ทองสุข อินทนนท์ ศรีสุข วงศ์ใหญ่"),
    (WESTERN, "ጥሩነሽ ኃይሌ ደራርቱ ቀነኒሳ", "ዲባባ ገብረሥላሴ ቱሉ በቀለ"),
    (WESTERN, "ნინო გიორგი თამარ ლაშა", "ბერიძე კვირიკაშვილი თალახაძე ჭანტურია"),
    (WESTERN, "Արամ Անահիտ Տիգրան Նարեկ", "Պետրոսյան Հակոբյան Սարգսյան Ղազարյան"),
    ('%1$s "%2$s"', "Leo Maya Kai Noa", "🏃 🚴‍♀️ 🏊🏽 🐐"),
]

# The dice are a digest of seed and number: an athlete is the same however many there are. The uuid
# takes the first of them, the name the last, and is of version 4, as Prisma's are. OFFSET 0 keeps
# the planner from throwing the dice again for each column.
INSERT_ATHLETES = """
INSERT INTO public."User" (uuid, name, email, "createdAt", "updatedAt")
SELECT overlay(overlay(encode(dice, 'hex') PLACING '4' FROM 13) PLACING '8' FROM 17)::uuid::text,
       format((ARRAY[{patterns}])[1 + place],
              (ARRAY[{given}])[1 + 4 * place + get_byte(dice, 14) % 4],
              (ARRAY[{family}])[1 + 4 * place + get_byte(dice, 13) % 4]),
       'athlete' || number || '@example.com',
       joined,
       joined
  FROM (SELECT number,
               dice,
               get_byte(dice, 15) % {places} AS place,
               TIMESTAMP '2020-01-01' + (number % 2000) * INTERVAL '1 day'
                                      + get_byte(dice, 12) * INTERVAL '5 minutes' AS joined
          FROM (SELECT number, decode(md5('{seed} ' || number), 'hex') AS dice
                  FROM generate_series({first}, {last}) AS number) AS thrown
        OFFSET 0) AS athlete
"""


def fill_app(app: Server, count: int, seed: int = 1, first: int = 1) -> None:
    """Let `count` athletes sign up in the app: those with the numbers from `first` on."""
    patterns, given, family = zip(*NAMES)
    app.psql("-q", stdin=INSERT_ATHLETES.format(
        patterns=sql_strings(patterns), given=sql_strings(" ".join(given).split()),
        family=sql_strings(" ".join(family).split()), places=len(NAMES), seed=seed, first=first, last=first + count - 1))


def sql_strings(texts: Iterable[str]) -> str:
    return ", ".join("'%s'" % text.replace("'", "''").replace("·", " ") for text in texts)
