"""Made-up athletes of many scripts, in the app's Prisma-shaped table. One seed, one set of athletes."""

from __future__ import annotations

from typing import List, NamedTuple

from servers import Server


class Names(NamedTuple):
    """The names of one place: how given and family name are put together, and eight of each."""

    pattern: str  # for Postgres's format(): %1$s is the given name, %2$s the family name
    given: str
    family: str


WESTERN, EASTERN, JOINED = "%1$s %2$s", "%2$s %1$s", "%2$s%1$s"

NAMES = [
    Names(WESTERN, "Anna Ben Chloe Dwayne Erin Frank Grace Henry",
          "O'Brien Smith-Jones McAllister Taylor Okafor Reed St.John Walker"),
    Names(WESTERN, "Zoë Björn Søren Åsa Jürgen Célia Íñigo Þóra",
          "Müller Ødegård Núñez Sjöström Gómez Lefèvre Strauß Guðjónsdóttir"),
    Names(WESTERN, "Łukasz Żaneta Jiří Šárka Ştefan Áron Čedomir Nikola",
          "Wójcik Dvořák Šťastná Țîrlea Szűcs Đoković Kučan Błaszczykowski"),
    Names(WESTERN, "Çağla İbrahim Gökhan Işıl Tuğba Ömer Şule Yiğit",
          "Yılmaz Öztürk Güneş Şahin Çelik Kılıç Aydın Doğan"),
    Names(EASTERN, "Thị·Hằng Văn·Đức Ngọc·Ánh Quốc·Bảo Thùy·Linh Minh·Tuấn Hồng·Nhung Anh·Dũng",
          "Nguyễn Trần Lê Phạm Huỳnh Vũ Đặng Bùi"),
    Names(WESTERN, "Анна Дмитрий Олексій Юлия Ѓорѓи Љубица Жанар Элина",
          "Иванова Шевченко Щербак Ђорђевић Їжакевич Ёлкина Қасымов Петров"),
    Names(WESTERN, "Ελένη Νίκος Άννα Γιώργος Θάλεια Ιωάννης Μαρία Σπύρος",
          "Παπαδόπουλος Αγγελίδης Χατζής Οικονόμου Ψαρρά Ξενάκης Ρήγας Δήμου"),
    Names(WESTERN, "فاطمة محمد عائشة يوسف نورة خالد زينب عمر",
          "الحسن بنعلي الزهراني منصور حداد النجار السوداني قاسم"),
    Names(WESTERN, "נועם יעל דניאל שירה איתן תמר אורי מיכל",
          "כהן לוי פרץ ביטון מזרחי אברהם פרידמן דהן"),
    Names(WESTERN, "प्रिया अर्जुन दीपिका रोहित अनन्या विक्रम लक्ष्मी संजय",
          "शर्मा पटेल सिंह गुप्ता अय्यर चौधरी मिश्रा राठौड़"),
    Names(WESTERN, "তানিয়া সাকিব রুমানা মেহেদী নাহিদা তামিম জাহানারা আরিফ",
          "হোসেন রহমান আক্তার খান ইসলাম চৌধুরী দাস সরকার"),
    Names(WESTERN, "தமிழ்செல்வி அருண் மீனா கார்த்திக் கவிதா முருகன் பிரியா சிவா",
          "சுப்பிரமணியன் ராஜன் நாயகம் குமார் செல்வம் பாண்டியன் வேலு மணி"),
    Names(JOINED, "娜 伟 秀英 子涵 浩然 雪 建国 思琪", "王 李 欧阳 陳 張 刘 司马 𠮷"),
    Names(JOINED, "翔太 さくら 健 美咲 大輔 カレン 陽子 凛", "大坂 髙橋 佐々木 渡邊 羽生 池江 小林 長谷川"),
    Names(JOINED, "민준 서연 지우 하은 도윤 예린 성호 유나", "김 이 박 최 정 강 남궁 황보"),
    Names(WESTERN, "สมชาย ปวีณา รัชนก เมย์ ธนพล วรรณา ชนาธิป กานต์",
          "ทองสุข อินทนนท์ ศรีสุข บุญมา แก้วมณี ชัยวัฒน์ รัตนา วงศ์ใหญ่"),
    Names(WESTERN, "ጥሩነሽ ኃይሌ ደራርቱ ቀነኒሳ ገንዘቤ አልማዝ ሰለሞን ለተሰንበት",
          "ዲባባ ገብረሥላሴ ቱሉ በቀለ አያና ባረጋ ግደይ ታደሰ"),
    Names(WESTERN, "ნინო გიორგი თამარ ლაშა ეკა ზურაბ ქეთევან ვაჟა",
          "ბერიძე კვირიკაშვილი თალახაძე მაისურაძე გელაშვილი ჯაფარიძე წიკლაური ჭანტურია"),
    Names(WESTERN, "Արամ Անահիտ Տիգրան Նարեկ Լուսինե Գոռ Շուշան Հայկ",
          "Պետրոսյան Հակոբյան Սարգսյան Ղազարյան Ավետիսյան Գրիգորյան Մկրտչյան Ջանոյան"),
    Names('%1$s "%2$s"', "Leo Maya Kai Noa Rio Ada Max Ida", "🏃 🚴‍♀️ 🥇 🏊🏽 🤸 ⚡ 🏋️ 🐐"),
]

# The dice are a digest of seed and number: an athlete is the same however many there are. The uuid
# takes the first of them, the name the last, and is of version 4, as Prisma's are. OFFSET 0 keeps
# the planner from throwing the dice again for each column.
INSERT_ATHLETES = """
INSERT INTO public."User" (uuid, name, email, "createdAt", "updatedAt")
SELECT overlay(overlay(encode(dice, 'hex') PLACING '4' FROM 13) PLACING '8' FROM 17)::uuid::text,
       format((ARRAY[{patterns}])[1 + place],
              (ARRAY[{given}])[1 + 8 * place + get_byte(dice, 14) % 8],
              (ARRAY[{family}])[1 + 8 * place + get_byte(dice, 13) % 8]),
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
    app.psql("-q", stdin=INSERT_ATHLETES.format(
        patterns=sql_strings([place.pattern for place in NAMES]),
        given=sql_strings([name for place in NAMES for name in eight_names(place.given)]),
        family=sql_strings([name for place in NAMES for name in eight_names(place.family)]),
        places=len(NAMES), seed=seed, first=first, last=first + count - 1))


def eight_names(line: str) -> List[str]:
    names = [name.replace("·", " ") for name in line.split()]
    assert len(names) == 8, line
    return names


def sql_strings(texts: List[str]) -> str:
    return ", ".join("'%s'" % text.replace("'", "''") for text in texts)
