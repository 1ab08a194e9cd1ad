"""The words that made-up texts consist of: common English ones, most of them one or two tokens long."""

LIST = """
account address adjust advice affect after again agent album alert allow alone along amount animal annual answer apply
april area argue army around arrive article artist aspect assign atlas audio august author average avoid award balance
ball bank base basic basket battery beach beauty become before begin behind believe bench benefit best better between
beyond bill bird black blood blue board boat body book border borrow bottle bottom brain branch bread break breath
bridge brief bright bring broad broken brother brown budget build burn business butter button buy cable cache camera
cancel cancer candle capital carbon card care career carry case castle catch cause cell center central century certain
chain chair change chapter charge cheap check cheese chemical chicken child choice choose church circle citizen city
civil claim class clean clear climate climb clock close cloth cloud coast code coffee cold collect college color
column come comfort command common company compare complete concert connect contain content context continue contract
control convert cook cool copper copy corner correct cost cotton council count country couple course court cover cream
create credit crime cross crowd culture current curve custom customer cycle daily damage dance danger data date
daughter death debate debt decade decide deep defend define degree delay deliver demand deny depend deposit depth
describe desert design detail detect develop device diet differ digital dinner direct disease display distance divide
doctor document dollar domain door double doubt draft dream dress drink drive drop during early earn earth east easy
economy edge edit educate effect effort egg elect electric element email empire employ empty enable end enemy energy
engine enjoy enter entire entry equal error escape estate europe evening event evidence exact example except exchange
exercise exist expand expect expert explain export express extend extra fabric face fact factor factory fair faith
fall false family famous farm fashion fast father feature federal feed feel female fever field figure file film filter
final finance find finger finish fire firm fish fit fix flag flat flight floor flow flower fly focus follow food foot
force foreign forest forget form formal former forward found frame free fresh friend front fruit fuel full fund future
gain game garden gas gate gather general gift girl give glass global goal gold good grade grain grant grass great
green ground group grow growth guard guess guide habit hair half hand happen harbor hard harvest have head health hear
heart heat heavy height help hidden high hill history hold holiday home honest honey hope horse hospital host hotel
hour house human hunt idea identify image impact import improve inch include income index industry infant inform
insect inside install island issue item january jacket join journal journey judge juice july jump justice keep kernel
key kind kitchen know label labor lake land language large last later laugh law layer lead leaf learn leave legal
lemon lend length lesson letter level library license life lift light limit line link liquid list listen liver loan
local lock logic long look lose loss love lower lucky lunch machine magic mail main major make manage map march margin
marine mark market master match material matter meal mean measure meat media medical meet member memory mental menu
merge message metal method middle mile milk million mind mineral minute mirror model modern moment money month moon
morning mother motion motor mountain mouse mouth move movie museum music name narrow nation nature near neck need
nerve network never new night noise normal north nose note novel number nurse object ocean offer office oil open opera
option orange order organ origin output oven over owner oxygen page pain paint pair palace paper parent park part
party pass password past path patient pattern pause pay peace people pepper percent period permit person phone photo
phrase piano picture piece pilot place plan planet plant plastic plate play please poem point police policy pool
popular port position potato pound power practice predict prefer prepare present press price print prison private
prize problem process produce profit program promise proof protect protein prove public pull purchase purpose push
quality quarter queen query question quick quiet radio rain raise range rapid rate reach read real reason recent
recipe record recover red reduce refund region register relate release remain remote remove rent repair repeat replace
reply report request rescue reset resist rest result return review rice rich right ring rise risk river road rock role
roof room root rough round route row rule safe salt sample sand save scale scene school science score screen sea
search season seat second secret section secure seed select sell send senior sense serve session settle shadow shape
share sharp sheet ship shirt shoe shop short shoulder show side signal silver simple single sister site size skill
skin sleep small smart smoke snow social soft soil solar soldier solid solve song sound soup source south space speak
special speech speed spend spirit sport spread spring square stable staff stage stand star start state station steel
step stock stone stop store storm story street strong student study style sugar suit summer sun supply support surface
switch symbol system table tail talk task taste tax teach team temple test text theory thing think thread ticket time
tiny title today token tool topic total touch tour tower town track trade train travel treat tree trial trip truck
true trust truth tunnel type under union unit update upper urban use user usual valley value vector version view
village virus visit visual voice volume vote wage wait walk wall want war warm wash watch water wave weak wealth
weather web week weight welcome west wheat wheel white whole wide wild wind window wine winter wire wish wolf woman
wonder wood word work world write yard year yellow young zero zone
"""
WORDS = tuple(LIST.split())
