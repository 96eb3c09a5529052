//! The examples of `docs/reference/api.md` are those that the tests run.

use super::programs::root;

/// Each example follows a link to the file that it is from, and consists of lines of that file, in their order.
#[test]
fn documented_examples_are_parts_of_the_tested_clients() {
    let page = root().join("docs/reference/api.md");
    let text = std::fs::read_to_string(page).expect("the page");
    let section = text.split("\n## ").find(|section| section.starts_with("Clients\n")).expect("a section");
    let (mut rest, mut file, mut examples): (Vec<String>, _, _) = (Vec::new(), String::new(), 0);
    for line in section.lines() {
        if let Some((_, after)) = line.split_once("(../../tests/clients/") {
            file = after.split(')').next().unwrap_or_default().to_owned();
            let text = std::fs::read_to_string(root().join("tests/clients").join(&file));
            let text = text.unwrap_or_else(|error| panic!("{file}: {error}"));
            rest = text.lines().rev().map(|line| line.trim().to_owned()).collect();
            examples += 1;
        }
        if let Some(example) = line.strip_prefix("    ") {
            let found = rest.iter().rposition(|line| line == example.trim());
            let found = found.unwrap_or_else(|| panic!("{file} has no such line there: {example}"));
            rest.truncate(found);
        }
    }
    assert_eq!(examples, 4, "curl, Python, Go and connect-web");
}
