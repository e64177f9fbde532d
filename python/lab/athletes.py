"""Made-up athletes of many scripts, in the app's Prisma-shaped table. One seed, one set of athletes."""

from __future__ import annotations

from typing import List, NamedTuple

from servers import Server


class Script(NamedTuple):
    """Names of one script: how given and family name are put together, and eight of each."""

    pattern: str  # for Postgres's format(): %1$s is the given name, %2$s the family name
    given: str
    family: str


WESTERN, EASTERN, JOINED = "%1$s %2$s", "%2$s %1$s", "%2$s%1$s"

SCRIPTS = [
    Script(WESTERN, "Anna Ben Chloe Dwayne Erin Frank Grace Henry",
           "O'Brien Smith-Jones McAllister Taylor Okafor Reed St.John Walker"),
    Script(WESTERN, "Zoë Björn Søren Åsa Jürgen Célia Íñigo Þóra",
           "Müller Ødegård Núñez Sjöström Gómez Lefèvre Strauß Guðjónsdóttir"),
    Script(WESTERN, "Łukasz Żaneta Jiří Šárka Ştefan Áron Čedomir Nikola",
           "Wójcik Dvořák Šťastná Țîrlea Szűcs Đoković Kučan Błaszczykowski"),
    Script(WESTERN, "Çağla İbrahim Gökhan Işıl Tuğba Ömer Şule Yiğit",
           "Yılmaz Öztürk Güneş Şahin Çelik Kılıç Aydın Doğan"),
    Script(EASTERN, "Thị·Hằng Văn·Đức Ngọc·Ánh Quốc·Bảo Thùy·Linh Minh·Tuấn Hồng·Nhung Anh·Dũng",
           "Nguyễn Trần Lê Phạm Huỳnh Vũ Đặng Bùi"),
    Script(WESTERN, "Анна Дмитрий Олексій Юлия Ѓорѓи Љубица Жанар Элина",
           "Иванова Шевченко Щербак Ђорђевић Їжакевич Ёлкина Қасымов Петров"),
    Script(WESTERN, "Ελένη Νίκος Άννα Γιώργος Θάλεια Ιωάννης Μαρία Σπύρος",
           "Παπαδόπουλος Αγγελίδης Χατζής Οικονόμου Ψαρρά Ξενάκης Ρήγας Δήμου"),
    Script(WESTERN, "فاطمة محمد عائشة يوسف نورة خالد زينب عمر",
           "الحسن بنعلي الزهراني منصور حداد النجار السوداني قاسم"),
    Script(WESTERN, "נועם יעל דניאל שירה איתן תמר אורי מיכל",
           "כהן לוי פרץ ביטון מזרחי אברהם פרידמן דהן"),
    Script(WESTERN, "प्रिया अर्जुन दीपिका रोहित अनन्या विक्रम लक्ष्मी संजय",
           "शर्मा पटेल सिंह गुप्ता अय्यर चौधरी मिश्रा राठौड़"),
    Script(WESTERN, "তানিয়া সাকিব রুমানা মেহেদী নাহিদা তামিম জাহানারা আরিফ",
           "হোসেন রহমান আক্তার খান ইসলাম চৌধুরী দাস সরকার"),
    Script(WESTERN, "தமிழ்செல்வி அருண் மீனா கார்த்திக் கவிதா முருகன் பிரியா சிவா",
           "சுப்பிரமணியன் ராஜன் நாயகம் குமார் செல்வம் பாண்டியன் வேலு மணி"),
    Script(JOINED, "娜 伟 秀英 子涵 浩然 雪 建国 思琪", "王 李 欧阳 陳 張 刘 司马 𠮷"),
    Script(JOINED, "翔太 さくら 健 美咲 大輔 カレン 陽子 凛", "大坂 髙橋 佐々木 渡邊 羽生 池江 小林 長谷川"),
    Script(JOINED, "민준 서연 지우 하은 도윤 예린 성호 유나", "김 이 박 최 정 강 남궁 황보"),
    Script(WESTERN, "สมชาย ปวีณา รัชนก เมย์ ธนพล วรรณา ชนาธิป กานต์",
           "ทองสุข อินทนนท์ ศรีสุข บุญมา แก้วมณี ชัยวัฒน์ รัตนา วงศ์ใหญ่"),
    Script(WESTERN, "ጥሩነሽ ኃይሌ ደራርቱ ቀነኒሳ ገንዘቤ አልማዝ ሰለሞን ለተሰንበት",
           "ዲባባ ገብረሥላሴ ቱሉ በቀለ አያና ባረጋ ግደይ ታደሰ"),
    Script(WESTERN, "ნინო გიორგი თამარ ლაშა ეკა ზურაბ ქეთევან ვაჟა",
           "ბერიძე კვირიკაშვილი თალახაძე მაისურაძე გელაშვილი ჯაფარიძე წიკლაური ჭანტურია"),
    Script(WESTERN, "Արամ Անահիտ Տիգրան Նարեկ Լուսինե Գոռ Շուշան Հայկ",
           "Պետրոսյան Հակոբյան Սարգսյան Ղազարյան Ավետիսյան Գրիգորյան Մկրտչյան Ջանոյան"),
    Script('%1$s "%2$s"', "Leo Maya Kai Noa Rio Ada Max Ida", "🏃 🚴‍♀️ 🥇 🏊🏽 🤸 ⚡ 🏋️ 🐐"),
]

# The dice are the row's own digest, so an athlete is the same whatever the others are. One uuid is
# Prisma's default, version 4. OFFSET 0 keeps the planner from throwing the dice again in each column.
INSERT_ATHLETES = """
INSERT INTO public."User" (uuid, name, email, "createdAt", "updatedAt")
SELECT overlay(overlay(encode(dice, 'hex') PLACING '4' FROM 13) PLACING '8' FROM 17)::uuid::text,
       format((ARRAY[{patterns}])[1 + script],
              (ARRAY[{given}])[1 + 8 * script + get_byte(dice, 1) % 8],
              (ARRAY[{family}])[1 + 8 * script + get_byte(dice, 2) % 8]),
       'athlete' || number || '@example.com',
       joined,
       joined
  FROM (SELECT number,
               dice,
               get_byte(dice, 0) % {scripts} AS script,
               TIMESTAMP '2020-01-01' + (number % 2000) * INTERVAL '1 day'
                                      + get_byte(dice, 3) * INTERVAL '5 minutes' AS joined
          FROM (SELECT number, decode(md5('{seed} ' || number), 'hex') AS dice
                  FROM generate_series({first}, {last}) AS number) AS thrown
        OFFSET 0) AS athlete
"""


def fill_app(app: Server, count: int, seed: int = 1, first: int = 1) -> None:
    """Let `count` athletes sign up in the app: those with the numbers from `first` on."""
    app.psql("-q", stdin=INSERT_ATHLETES.format(
        patterns=sql_strings([script.pattern for script in SCRIPTS]),
        given=sql_strings([name for script in SCRIPTS for name in eight_names(script.given)]),
        family=sql_strings([name for script in SCRIPTS for name in eight_names(script.family)]),
        scripts=len(SCRIPTS), seed=seed, first=first, last=first + count - 1))


def eight_names(line: str) -> List[str]:
    names = [name.replace("·", " ") for name in line.split()]
    assert len(names) == 8, line
    return names


def sql_strings(texts: List[str]) -> str:
    return ", ".join("'%s'" % text.replace("'", "''") for text in texts)
