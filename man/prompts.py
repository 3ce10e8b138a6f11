"""The prompts of vlmkit-prompts(7): jobs, what to know of them, and command lines that the tests run as they stand."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A job, and a command line for it; `pictures` is how many the model gets of the files that the tests make."""

    job: str
    about: str
    line: str
    pictures: int = 1


PROMPTS = [
    Prompt(
        "The numbers of a chart",
        "One row a point, so that a list of objects is asked for; the file of the schema is that of JSON Schema.",
        "vlmkit ask chart.png 'Read every data point of this chart. Give each with the name of its series, its "
        "label on the x axis, and its value as a number without unit.' --schema points.json --format csv",
    ),
    Prompt(
        "What a chart says",
        "The question names what to look at first: models that begin with the title and the axes misread less.",
        "vlmkit ask chart.png 'State the title, the axes with their units, and the trend of each series. Then answer: "
        "which series grew most, and by how much?'",
    ),
    Prompt(
        "A filled form",
        "`null` in place of a guess needs a schema that allows it; a description says what belongs into a field.",
        "vlmkit ask form.pdf 'Copy what is filled in, letter by letter. Leave out what is printed on the form itself.' "
        '--schema \'{"type": "object", "properties": {"name": {"type": ["string", "null"]}, "born": {"type": '
        '["string", "null"], "description": "YYYY-MM-DD"}, "signed": {"type": "boolean"}}, "required": ["name", '
        '"born", "signed"], "additionalProperties": false}\'',
    ),
    Prompt(
        "An invoice or a receipt",
        "A line of fields is enough where each has one value. One row a page of all documents in a folder: --each.",
        "vlmkit ask invoices/ 'Extract these fields as they are printed.' --schema 'company, number, date: YYYY-MM-DD, "
        "total float, currency' --format csv -o invoices.csv",
        3,
    ),
    Prompt(
        "A table",
        "Rows as lists of cells keep the order of the columns. XML where another program wants that.",
        "vlmkit ask report.pdf --pages 2 'Copy the table on this page, row by row, the head first. Leave an empty cell "
        'empty.\' --schema \'{"type": "object", "properties": {"rows": {"type": "array", "items": {"type": "array", '
        '"items": {"type": "string"}}}}, "required": ["rows"], "additionalProperties": false}\' --format xml',
    ),
    Prompt(
        "Code from a mock-up",
        "As a field of JSON code keeps its lines, and nothing stands around it: `| jq -r .html > page.html`.",
        "vlmkit ask mockup.png 'Write the HTML page that this mock-up shows, with its CSS in a style element. Copy all "
        "texts, use grey boxes for pictures, no script.' --schema 'html: the whole page' --max-tokens 4096",
    ),
    Prompt(
        "A user interface",
        "For tests and for access: what can be pressed, by its name.",
        "vlmkit ask mockup.png 'List every control of this screen from top to bottom.' --schema controls.json",
    ),
    Prompt(
        "Several questions about one document",
        "One record a question, the pages are drawn once. Place and confidence show which answers to check.",
        "vlmkit ask report.pdf --questions questions.txt --schema 'answer, page int: the page that says it, "
        "confidence float: 0 to 1'",
        6,
    ),
    Prompt(
        "A summary of a long document",
        "All pages go along as one question, each with its number, up to the limit of the model.",
        "vlmkit ask report.pdf 'Summarise this document in five sentences. Name the page for each number that you "
        "give.' --max-tokens 600",
        3,
    ),
    Prompt(
        "Two versions of a document",
        "Pictures and pages of several files are told apart by the names of their files.",
        "vlmkit ask form.pdf report.pdf 'What do these two documents contradict each other in?'",
        4,
    ),
    Prompt(
        "All that is written",
        "Scans, signs, handwriting: lines are kept. Without -m a real OCR engine reads.",
        "vlmkit ask report.pdf --ocr --each --format text -o report.txt",
        3,
    ),
    Prompt(
        "A task step by step",
        "Steps before the result make it right more often; the last line is easy to find.",
        "vlmkit ask chart.png 'Solve what this picture asks for. Show each step, then write the result alone after "
        "the word RESULT.' --max-tokens 1024",
    ),
    Prompt(
        "An explanation for learners",
        "The system text holds for all pictures of a run.",
        "vlmkit ask chart.png 'Explain this to me.' --system 'You teach twelve-year-olds. Use short sentences, one "
        "example from daily life, and end with a question to check that it was understood.'",
    ),
    Prompt(
        "A look for dangers",
        "Fields make every picture answer every point.",
        "vlmkit ask photos/ 'Look at this workplace as an inspector would.' --schema 'hazards: each with its place, "
        "missing_protection, urgent bool'",
    ),
]


def sections() -> str:
    """The prompts as Markdown."""
    return "".join(f"\n## {one.job}\n\n{one.about}\n\n```\n{one.line}\n```\n" for one in PROMPTS) + "\n"
