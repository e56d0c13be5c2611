//! Prompts of made-up questions in the publishers' formats, and files that are not what they should be.

use super::*;
use crate::eval::question::shown;
use insta::assert_snapshot;
use std::fs;
use tempfile::TempDir;

/// Files by their paths in a directory.
struct Files(TempDir);

impl Files {
    fn of(files: &[(&str, &str)]) -> Self {
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        Self::of_bytes(&files)
    }

    fn of_bytes(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("it is made");
            fs::write(path, bytes).expect("it is written");
        }
        Self(dir)
    }

    fn read(&self, task: &str, name: &str, extent: Extent) -> Result<Asked, TaskFileError> {
        read(task, &self.0.path().join(name), extent)
    }

    fn shown(&self, task: &str, name: &str) -> String {
        let found = self.read(task, name, ALL).unwrap_or_else(|e| panic!("{e}"));
        assert!(found.questions.iter().all(|question| question.answer < question.asked.len()));
        shown(&found.questions)
    }

    /// Why a file is refused, without the hint.
    fn refused(&self, task: &str, name: &str) -> String {
        let error = self.read(task, name, ALL).expect_err("it is refused").to_string();
        let error = error.replace(&format!("{}/", self.0.path().display()), "");
        let (told, hint) = error.split_once(" (hint: ").unwrap_or_else(|| panic!("{error}"));
        assert!(hint.starts_with(&format!("--task {task} takes ")) && hint.ends_with(')'), "{error}");
        told.to_owned()
    }
}

const ALL: Extent = Extent { limit: usize::MAX, shots: 0 };

const PIQA: &str = r#"{"goal": "dry a wet boot", "sol1": "fill it with paper", "sol2": "fill it with soup"}
{"goal": "sharpen a pencil", "sol1": "lick it", "sol2": "turn it in a sharpener"}
"#;
const WINOGRANDE: &str = r#"{"qID": "1", "sentence": "The crate did not fit on the cart because the _ was too wide.", "option1": "crate", "option2": "cart", "answer": "1"}"#;
const WSC: &str = r#"{"text": "Ida asked Una whether she did n't see the cat .", "target": {"span1_index": 0, "span1_text": "Ida", "span2_index": 4, "span2_text": "she"}, "idx": 0, "label": false}"#;
const WSC273: &str = r#"<?xml version="1.0"?>
<collection>
<schema>
<text>
<txt1>
The baker thanked the miller because</txt1>
<pron> he </pron>
<txt2> had brought
 flour. </txt2>
</text>
<quote><quote1></quote1><pron>he </pron><quote2>had brought flour</quote2></quote>
<answers><answer>The baker </answer><answer>The miller</answer></answers>
<correctAnswer> B. </correctAnswer>
<source>made up</source>
</schema>
<schema>
<text><txt1>Ann met Bea &amp; Cy.</txt1><pron>Her</pron><txt2>dog barked.</txt2></text>
<answers><answer>Ann</answer><answer>Bea</answer></answers>
<correctAnswer>A</correctAnswer>
</schema>
</collection>
"#;
const ARC: &str = r#"{"id": "a", "question": {"stem": "Which of these is hot?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}, {"text": "fog", "label": "C"}]}, "answerKey": "B"}
{"id": "b", "question": {"stem": "How many legs has a spider?", "choices": [{"text": "six", "label": "1"}, {"text": "eight", "label": "2"}]}, "answerKey": "2"}"#;
const LOGIQA: &str = "
c
All cups are blue.This is a cup .
What follows?
A.It is red.
B.It is old.
C.It is blue.
D.It is large.

a
Nobody sings.
Who sings?
A.Nobody
B.Somebody
C.Everybody
D.The birds
";
const SIQA: &str = r#"{"context": "Kim lent Lee a book.", "question": "What will Lee do next?", "answerA": "read it", "answerB": "eat it", "answerC": "paint it", "label": "1"}"#;
const BOOLQ: &str = r#"{"question": "is moss a plant", "title": "Moss", "answer": true, "passage": "Mosses are small plants."}
{"question": "is salt a plant", "passage": "Salt is a mineral.", "idx": 1, "label": false}"#;
const HELLASWAG: &str = r#"{"ind": 1, "activity_label": "Baking", "ctx_a": "A man kneads dough [header] How [title] to bake.", "ctx_b": "he THEN", "ctx": "", "split": "val", "endings": ["puts it into an oven.", "sings [substeps]  to it.", "sails.", "flies."], "label": 0}"#;
const COPA: &str = r#"{"premise": "The cup broke.", "choice1": "It fell.", "choice2": "It was full.", "question": "cause", "idx": 0, "label": 0}
{"premise": "It rained. ", "choice1": "I sang.", "choice2": "The street was wet.", "question": "effect", "idx": 1, "label": 1}"#;
const RACE: &str = r#"{"id": "high1.txt", "article": "Bees live together.", "questions": ["Bees live  _  .", "Who lives together?", "What is said of bees?"], "options": [["alone", "together", "in water", "in snow"], ["Bees", "Foxes", "Owls", "Moles"], ["Nothing", "Where they live", "How they live", "What they eat"]], "answers": ["B", "A", "C"]}"#;
const MMLU: &str = "What is 1 + 1?,1,2,3,4,B\n\"Which, if any, is even?\",1,2,3,5,B\n";
const DEV: &str = "What is 2 + 2?,4,5,6,7,A\nWhat is 3 + 3?,4,5,6,7,C\n";

#[test]
fn piqa() {
    let files = Files::of(&[("valid.jsonl", PIQA), ("valid-labels.lst", "0\n1\n")]);
    assert_snapshot!(files.shown("piqa", "valid.jsonl"), @r"
    * Question: dry a wet boot\nAnswer:| fill it with paper
      Question: dry a wet boot\nAnswer:| fill it with soup
    --
      Question: sharpen a pencil\nAnswer:| lick it
    * Question: sharpen a pencil\nAnswer:| turn it in a sharpener
    ");
    // The publisher's file of a directory, and labels in the lines.
    assert_eq!(files.shown("piqa", ""), files.shown("piqa", "valid.jsonl"));
    let inside = PIQA.replace("}\n", ", \"label\": 1}\n");
    let files = Files::of(&[("a.jsonl", &inside)]);
    assert_eq!(files.read("piqa", "a.jsonl", ALL).expect("questions").questions[0].answer, 1);
}

#[test]
fn winogrande() {
    let files = Files::of(&[("dev.jsonl", WINOGRANDE)]);
    assert_snapshot!(files.shown("winogrande", ""), @r"
    * The crate did not fit on the cart because the crate| was too wide.
      The crate did not fit on the cart because the cart| was too wide.
    ");
    let beside = WINOGRANDE.replace(", \"answer\": \"1\"", "");
    let files = Files::of(&[("dev.jsonl", &beside), ("dev-labels.lst", "2\n")]);
    assert_eq!(files.read("winogrande", "", ALL).expect("questions").questions[0].answer, 1);
}

#[test]
fn wsc() {
    assert_snapshot!(Files::of(&[("val.jsonl", WSC)]).shown("wsc", ""), @r#"
    * Passage: Ida asked Una whether *she* didn't see the cat.\nQuestion: In the passage above, does the pronoun \"*she*\" refer to \"*Ida*\"?\nAnswer:| no
      Passage: Ida asked Una whether *she* didn't see the cat.\nQuestion: In the passage above, does the pronoun \"*she*\" refer to \"*Ida*\"?\nAnswer:| yes
    "#);
}

#[test]
fn wsc273() {
    assert_snapshot!(Files::of(&[("WSCollection.xml", WSC273)]).shown("wsc273", ""), @r"
      The baker thanked the miller because the baker|  had brought flour.
    * The baker thanked the miller because the miller|  had brought flour.
    --
    * Ann met Bea & Cy. Ann's|  dog barked.
      Ann met Bea & Cy. Bea's|  dog barked.
    ");
}

#[test]
fn arc() {
    let files = Files::of(&[("ARC-Easy-Test.jsonl", ARC), ("ARC-Challenge-Test.jsonl", ARC)]);
    assert_snapshot!(files.shown("arc_easy", ""), @r"
      Question: Which of these is hot?\nAnswer:| ice
    * Question: Which of these is hot?\nAnswer:| fire
      Question: Which of these is hot?\nAnswer:| fog
    --
      Question: How many legs has a spider?\nAnswer:| six
    * Question: How many legs has a spider?\nAnswer:| eight
    ");
    assert_eq!(files.shown("arc_challenge", ""), files.shown("arc_easy", ""));
}

#[test]
fn logiqa() {
    assert_snapshot!(Files::of(&[("Eval.txt", LOGIQA)]).shown("logiqa", ""), @r"
      Passage: All cups are blue. This is a cup .\nQuestion: What follows?\nChoices:\nA. It is red.\nB. It is old.\nC. It is blue.\nD. It is large.\nAnswer:| It is red.
      Passage: All cups are blue. This is a cup .\nQuestion: What follows?\nChoices:\nA. It is red.\nB. It is old.\nC. It is blue.\nD. It is large.\nAnswer:| It is old.
    * Passage: All cups are blue. This is a cup .\nQuestion: What follows?\nChoices:\nA. It is red.\nB. It is old.\nC. It is blue.\nD. It is large.\nAnswer:| It is blue.
      Passage: All cups are blue. This is a cup .\nQuestion: What follows?\nChoices:\nA. It is red.\nB. It is old.\nC. It is blue.\nD. It is large.\nAnswer:| It is large.
    --
    * Passage: Nobody sings.\nQuestion: Who sings?\nChoices:\nA. Nobody\nB. Somebody\nC. Everybody\nD. The birds\nAnswer:| Nobody
      Passage: Nobody sings.\nQuestion: Who sings?\nChoices:\nA. Nobody\nB. Somebody\nC. Everybody\nD. The birds\nAnswer:| Somebody
      Passage: Nobody sings.\nQuestion: Who sings?\nChoices:\nA. Nobody\nB. Somebody\nC. Everybody\nD. The birds\nAnswer:| Everybody
      Passage: Nobody sings.\nQuestion: Who sings?\nChoices:\nA. Nobody\nB. Somebody\nC. Everybody\nD. The birds\nAnswer:| The birds
    ");
}

#[test]
fn siqa() {
    assert_snapshot!(Files::of(&[("dev.jsonl", SIQA)]).shown("siqa", ""), @r"
    * Q: Kim lent Lee a book. What will Lee do next?\nA:| read it
      Q: Kim lent Lee a book. What will Lee do next?\nA:| eat it
      Q: Kim lent Lee a book. What will Lee do next?\nA:| paint it
    ");
}

#[test]
fn boolq() {
    assert_snapshot!(Files::of(&[("dev.jsonl", BOOLQ)]).shown("boolq", ""), @r"
      Mosses are small plants.\nQuestion: is moss a plant?\nAnswer:| no
    * Mosses are small plants.\nQuestion: is moss a plant?\nAnswer:| yes
    --
    * Salt is a mineral.\nQuestion: is salt a plant?\nAnswer:| no
      Salt is a mineral.\nQuestion: is salt a plant?\nAnswer:| yes
    ");
}

#[test]
fn hellaswag() {
    assert_snapshot!(Files::of(&[("hellaswag_val.jsonl", HELLASWAG)]).shown("hellaswag", ""), @r"
    * Baking: A man kneads dough How. to bake. He then| puts it into an oven.
      Baking: A man kneads dough How. to bake. He then| sings  to it.
      Baking: A man kneads dough How. to bake. He then| sails.
      Baking: A man kneads dough How. to bake. He then| flies.
    ");
}

#[test]
fn copa() {
    assert_snapshot!(Files::of(&[("val.jsonl", COPA)]).shown("copa", ""), @r"
    * The cup broke because|  it fell.
      The cup broke because|  it was full.
    --
      It rained therefore|  i sang.
    * It rained therefore|  the street was wet.
    ");
}

#[test]
fn race() {
    let other = RACE.replace("Bees live together.", "Bees live in hives.");
    let files = Files::of(&[("high/10.txt", &other), ("high/9.txt", RACE)]);
    assert_snapshot!(files.shown("race", "high/9.txt"), @r"
      Article: Bees live together.\n\nBees live together\nQuestion: Who lives together?\nAnswer: Bees\nWhat is said of bees?| Nothing
      Article: Bees live together.\n\nBees live together\nQuestion: Who lives together?\nAnswer: Bees\nWhat is said of bees?| Where they live
    * Article: Bees live together.\n\nBees live together\nQuestion: Who lives together?\nAnswer: Bees\nWhat is said of bees?| How they live
      Article: Bees live together.\n\nBees live together\nQuestion: Who lives together?\nAnswer: Bees\nWhat is said of bees?| What they eat
    ");
    let found = files.read("race", "high", ALL).expect("questions").questions;
    assert!(found[0].asked[0].context.contains("live together") && found.len() == 2);
    let one = files.read("race", "high", Extent { limit: 1, ..ALL }).expect("questions");
    assert_eq!(one.questions.len(), 1);
}

#[test]
fn mmlu() {
    let files = Files::of(&[
        ("test/small_sums_test.csv", MMLU),
        ("dev/small_sums_dev.csv", DEV),
        ("test/empty_words_test.csv", "Say?,a,b,c,d,D"),
        ("dev/empty_words_dev.csv", "Say not?,a,b,c,d,C"),
    ]);
    assert_snapshot!(files.shown("mmlu", "test/small_sums_test.csv"), @r"
      The following are multiple choice questions (with answers) about small sums.\n\nWhat is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:| A
    * The following are multiple choice questions (with answers) about small sums.\n\nWhat is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:| B
      The following are multiple choice questions (with answers) about small sums.\n\nWhat is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:| C
      The following are multiple choice questions (with answers) about small sums.\n\nWhat is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:| D
    --
      The following are multiple choice questions (with answers) about small sums.\n\nWhich, if any, is even?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer:| A
    * The following are multiple choice questions (with answers) about small sums.\n\nWhich, if any, is even?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer:| B
      The following are multiple choice questions (with answers) about small sums.\n\nWhich, if any, is even?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer:| C
      The following are multiple choice questions (with answers) about small sums.\n\nWhich, if any, is even?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer:| D
    ");
    let solved = files.read("mmlu", "", Extent { limit: 1, shots: 2 }).expect("questions").questions;
    assert_eq!(solved.len(), 2);
    assert_snapshot!(solved[1].asked[0].context, @r"
    The following are multiple choice questions (with answers) about small sums.

    What is 2 + 2?
    A. 4
    B. 5
    C. 6
    D. 7
    Answer: A

    What is 3 + 3?
    A. 4
    B. 5
    C. 6
    D. 7
    Answer: C

    What is 1 + 1?
    A. 1
    B. 2
    C. 3
    D. 4
    Answer:
    ");
    let none = Files::of(&[("a_test.csv", MMLU)]).read("mmlu", "a_test.csv", Extent { shots: 1, ..ALL });
    let told = none.expect_err("it is refused").to_string();
    assert!(told.contains("holds none of ../dev/a_dev.csv, a_dev.csv"), "{told}");
}

#[test]
fn lambada() {
    let files = Files::of(&[
        ("a.txt", "The crow saw the fox and the fox saw the crow\nOne two  three\n"),
        ("a.jsonl", "{\"text\": \"The crow saw\\nthe fox\"}"),
    ]);
    assert_snapshot!(files.shown("lambada", "a.txt"), @r"
    * The crow saw the fox and the fox saw the| crow
    --
    * One two | three
    ");
    assert_snapshot!(files.shown("lambada", "a.jsonl"), @r"* The crow saw\nthe| fox");
}

#[test]
fn lines_of_any_other_name() {
    let text = r#"{"context": "I pray", "choices": [" you", " not"], "answer": 1}"#;
    let files = Files::of(&[("a", text)]);
    assert_snapshot!(files.shown("mine", "a"), @r"
      I pray| you
    * I pray| not
    ");
    let found = files.read("mine", "a", ALL).expect("questions");
    assert_eq!((found.version, found.metrics), (None, &[Metric::Accuracy][..]));
}

/// A good file of every task.
const GOOD: [(&str, &str, &str); 14] = [
    ("arc_challenge", "a.jsonl", ARC),
    ("arc_easy", "a.jsonl", ARC),
    ("boolq", "a.jsonl", BOOLQ),
    ("copa", "a.jsonl", COPA),
    ("hellaswag", "a.jsonl", HELLASWAG),
    ("lambada", "a.jsonl", "{\"text\": \"a b\"}"),
    ("logiqa", "a.txt", LOGIQA),
    ("mmlu", "a_test.csv", MMLU),
    ("piqa", "a.jsonl", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": 0}"),
    ("race", "a.txt", RACE),
    ("siqa", "a.jsonl", SIQA),
    ("winogrande", "a.jsonl", WINOGRANDE),
    ("wsc", "a.jsonl", WSC),
    ("wsc273", "a.xml", WSC273),
];

#[test]
fn every_task_has_a_row_and_a_file() {
    let names: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
    assert!(names.is_sorted());
    assert_eq!(names, GOOD.map(|(task, ..)| task));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/eval/tasks");
    let files = fs::read_dir(directory).expect("the directory").map(|entry| entry.expect("an entry").path());
    let mut stems: Vec<String> =
        files.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    stems.retain(|stem| !stem.starts_with('.') && !["mod", "tests", "lines"].contains(&stem.as_str()));
    stems.sort();
    assert_eq!(stems, names);
}

/// Empty, no text, another task's, cut short.
#[test]
fn what_is_no_file_of_a_task_is_refused() {
    let mut told = Vec::new();
    for (task, name, good) in GOOD {
        Files::of(&[(name, good)]).shown(task, name);
        assert_eq!(
            Files::of(&[(name, " \n\n")]).refused(task, name),
            format!("{name}: it holds no questions")
        );
        let bytes = [good.as_bytes(), b"\n\n\xff"].concat();
        let line = bytes.split(|byte| *byte == b'\n').count();
        let refused = Files::of_bytes(&[(name, &bytes)]).refused(task, name);
        assert_eq!(refused, format!("{name}: line {line}: it is not UTF-8 text"));
        let cut = &good[..good.len() * 2 / 3];
        let refused = Files::of(&[(name, cut)]).refused(task, name);
        assert!(refused.starts_with(&format!("{name}: line ")), "{task}: {refused}");
        assert!(Files::of(&[]).refused(task, "nowhere").starts_with("nowhere: No such file"));
        for (other, _, text) in GOOD {
            // Files of both parts of ARC are alike, and a `text` of any file has a last word.
            let is_same = other == task
                || (other.starts_with("arc") && task.starts_with("arc"))
                || (other == "wsc" && task == "lambada");
            if !is_same {
                let refused = Files::of(&[(name, text)]).refused(task, name);
                assert!(refused.starts_with(&format!("{name}: line ")), "{task} of {other}: {refused}");
                told.push(format!("{task} of {other}: {refused}"));
            }
        }
    }
    let of = |task: &str| told.iter().find(|line| line.starts_with(task)).cloned().unwrap_or_default();
    assert_snapshot!(GOOD.map(|(task, ..)| of(task)).join("\n"), @r#"
    arc_challenge of boolq: a.jsonl: line 1: `question.stem` is missing, expected text
    arc_easy of boolq: a.jsonl: line 1: `question.stem` is missing, expected text
    boolq of arc_challenge: a.jsonl: line 1: `passage` is missing, expected text
    copa of arc_challenge: a.jsonl: line 1: `question` is an object, expected cause or effect
    hellaswag of arc_challenge: a.jsonl: line 1: `ctx_b` is missing, expected text
    lambada of arc_challenge: a.jsonl: line 1: `text` is missing, expected text
    logiqa of arc_challenge: a.txt: line 1: the answer is "{"id": "a", "question": …", expected a, b, c or d
    mmlu of arc_challenge: a_test.csv: line 1: the column after `answer` is " {"text": "fog"", expected none
    piqa of arc_challenge: a.jsonl: line 1: `label` is missing, expected 0 or 1
    race of arc_challenge: a.txt: line 1: it is no JSON (trailing characters at line 2 column 1), expected an object
    siqa of arc_challenge: a.jsonl: line 1: `label` is missing, expected 1 to 3
    winogrande of arc_challenge: a.jsonl: line 1: `answer` is missing, expected 1 or 2
    wsc of arc_challenge: a.jsonl: line 1: `text` is missing, expected text
    wsc273 of arc_challenge: a.xml: line 2: it is text outside of XML ("{"id": "a", "question": …"), expected a collection of schemas in XML
    "#);
}

#[test]
fn what_is_wrong_in_a_line_is_named() {
    let wrong = |task: &str, good: &str, (from, to): (&str, &str)| {
        let (_, name, _) = GOOD.into_iter().find(|(known, ..)| *known == task).unwrap_or(("", "a.jsonl", ""));
        assert!(good.contains(from), "{from}");
        Files::of(&[(name, &good.replacen(from, to, 1))]).refused(task, name)
    };
    let mine = r#"{"context": "I", "choices": ["a"], "answer": 0}"#;
    let piqa = r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}"#;
    let told = [
        wrong("mine", mine, ("0", "1")),
        wrong("mine", mine, ("\"I\"", "\"\"")),
        wrong("mine", mine, ("[\"a\"]", "[]")),
        wrong("mine", mine, ("[\"a\"]", "[\"a\", 5]")),
        wrong("piqa", piqa, ("0", "2")),
        wrong("piqa", piqa, ("sol2", "sol3")),
        wrong("piqa", piqa, (", \"label\": 0", "")),
        wrong("winogrande", WINOGRANDE, ("_", "cart")),
        wrong("winogrande", WINOGRANDE, ("\"1\"}", "\"3\"}")),
        wrong("wsc", WSC, ("\"span2_index\": 4", "\"span2_index\": 44")),
        wrong("wsc", WSC, ("false", "\"no\"")),
        wrong("wsc273", WSC273, ("> B. <", "> C <")),
        wrong("wsc273", WSC273, ("<answer>The miller</answer>", "")),
        wrong("wsc273", WSC273, ("<correctAnswer> B. </correctAnswer>", "")),
        wrong("wsc273", WSC273, ("</txt1>", "</txt3>")),
        wrong("arc_easy", ARC, ("\"answerKey\": \"B\"", "\"answerKey\": \"E\"")),
        wrong("arc_easy", ARC, ("\"text\": \"fire\"", "\"texts\": \"fire\"")),
        wrong("logiqa", LOGIQA, ("c\n", "e\n")),
        wrong("logiqa", LOGIQA, ("B.It is old.\n", "")),
        wrong("logiqa", LOGIQA, ("D.It is large.", "D.")),
        wrong("siqa", SIQA, ("\"1\"}", "\"0\"}")),
        wrong("boolq", BOOLQ, ("true", "1")),
        wrong("hellaswag", HELLASWAG, ("\"label\": 0", "\"label\": 4")),
        wrong("copa", COPA, ("\"cause\"", "\"reason\"")),
        wrong("copa", COPA, ("\"It fell.\"", "\" \"")),
        wrong("race", RACE, ("\"B\", \"A\"", "\"B\", \"F\"")),
        wrong("race", RACE, ("\"Owls\", ", "")),
        wrong("mmlu", MMLU, (",4,B", ",4,E")),
        wrong("mmlu", MMLU, (",4,B", ",B")),
        wrong("lambada", "{\"text\": \"a b\"}", ("a b", "ab")),
    ];
    assert_snapshot!(told.join("\n"), @r#"
    a.jsonl: line 1: `answer` is 1, expected 0
    a.jsonl: line 1: `context` is empty, expected text, since nothing predicts the first token
    a.jsonl: line 1: `choices` is an empty list, expected a list with something in it
    a.jsonl: line 1: `choices.1` is 5, expected text
    a.jsonl: line 1: `label` is 2, expected 0 or 1
    a.jsonl: line 1: `sol2` is missing, expected text
    a.jsonl: line 1: `label` is missing, expected 0 or 1
    a.jsonl: line 1: `sentence` is "The crate did not fit on…", expected a sentence with a `_` in it
    a.jsonl: line 1: `answer` is "3", expected 1 or 2
    a.jsonl: line 1: `target.span2_index` is 44, expected 0 to 10
    a.jsonl: line 1: `label` is "no", expected true or false
    a.xml: line 3: <correctAnswer> is "C", expected A or B
    a.xml: line 3: <answer> is given 1 time, expected two
    a.xml: line 3: <correctAnswer> is missing, expected text
    a.xml: line 6: it is no XML (ill-formed document: expected `</txt1>`, but `</txt3>` was found), expected a collection of schemas in XML
    a.jsonl: line 1: `answerKey` is "E", expected A, B or C
    a.jsonl: line 1: `question.choices.1.text` is missing, expected text
    a.txt: line 2: the answer is "e", expected a, b, c or d
    a.txt: line 7: option D is missing after this line, expected a line of text
    a.txt: line 8: option D is "D.", expected D. and its text
    a.jsonl: line 1: `label` is "0", expected 1 to 3
    a.jsonl: line 1: `answer` is 1, expected true or false
    a.jsonl: line 1: `label` is 4, expected 0 to 3
    a.jsonl: line 1: `question` is "reason", expected cause or effect
    a.jsonl: line 1: `choice1` is empty, expected text with something in it
    a.txt: line 1: `answers.1` is "F", expected A, B, C or D
    a.txt: line 1: `options.1` is a list of 3, expected a list of four texts
    a_test.csv: line 1: the column `answer` is "E", expected A, B, C or D
    a_test.csv: line 1: the column `answer` is missing, expected text
    a.jsonl: line 1: `text` is "ab", expected text that ends with a space and a word
    "#);
    let labels = |labels: &str| {
        Files::of(&[("valid.jsonl", PIQA), ("valid-labels.lst", labels)]).refused("piqa", "valid.jsonl")
    };
    assert_snapshot!([labels("0\n"), labels("0\n7\n"), labels("\n")].join("\n"), @r#"
    valid-labels.lst: line 2: the label is missing, expected 0 or 1
    valid-labels.lst: line 2: the label is "7", expected 0 or 1
    valid-labels.lst: it holds no questions
    "#);
    let other = Files::of(&[("other.txt", "a b")]);
    assert_snapshot!([other.refused("piqa", ""), other.refused("race", "nowhere")].join("\n"), @r"
    : the directory holds none of valid.jsonl, dev.jsonl, piqa_valid.jsonl
    nowhere: No such file or directory (os error 2)
    ");
}
