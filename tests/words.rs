//! Names, comments, docs and messages use the field's words: those that this project once had for itself are
//! not used again.

use std::path::{Path, PathBuf};

/// Words by themselves, or as a part of an identifier, and what to write instead. Checked in all sources and
/// docs, whatever their case.
const BANNED: &[(&str, &str)] = &[
    ("kept", "name what it is: tracked, stored, cached, retained, reserved"),
    ("patience", "timeout, retry policy, threshold"),
    ("patiently", "with retries"),
    ("namesake namesakes", "stale attempt with a reused id"),
    ("stray strays strayed", "orphaned"),
    ("stamp stamps", "high-water mark (of a journal), timestamp"),
    ("speaker speakers speaks", "active agent, holds the session"),
    ("hear hears heard", "receive, received, last heartbeat"),
    ("tell tells told telling", "report, return, print"),
    ("say says said saying", "report, return, print, state"),
    ("greet greets greeted greeting welcome", "handshake, accepted"),
    ("silence", "heartbeat timeout; without a message"),
    ("brake", "mass-failure circuit breaker"),
    ("outlet intake", "response stream, request-body limiter"),
    ("stranger strangers probation", "first-time user, unauthenticated connection"),
    ("honest", "sanitised, correct"),
    ("deceive deceives deceptive", "control or bidi characters"),
    ("trouble troubled", "failure tracker, problem"),
    ("readmit readmits readmitted", "release"),
    ("vitals", "health"),
    ("complain complains complaint complaints", "error"),
    ("calm", "fault-free"),
    ("liar liars", "Byzantine agent"),
    ("weather", "link conditions"),
    ("mistakes", "invalid requests"),
    ("doomed", "dependency failed"),
    ("chore chores", "due action"),
    ("settle settles settled", "reconcile"),
    ("pace paces", "moving-average run time"),
    ("lesson lessons", "workload profile"),
    ("news", "drift"),
    ("clutter", "fragmentation"),
    ("launch launches launched launching", "start"),
    ("lined follower followers", "queued behind a claim, successor"),
    ("standing", "permanence, authentication state"),
    ("anew", "again"),
    ("whoever nobody", "any client that, none"),
    ("midst", "during"),
    ("pen", "writer lock"),
    ("mind", "scoring context"),
];

/// Proper names, in which a word is not ours: a user that every Unix system has.
const NAMES: &[&str] = &["`nobody`", "\"nobody\"", "user nobody"];

/// Words that are banned in some folders only: elsewhere they have their ordinary meaning.
const BANNED_IN: &[(&str, &str, &str)] = &[
    ("simulator", "fork forks forked", "stale copy"),
    ("src/state", "tail tails", "last of a claim"),
    ("src/scheduler", "tail tails", "last of a claim"),
    ("src/scheduler", "room rooms", "free capacity, freed capacity"),
    ("src/scheduler", "outline outlines sketch", "bounds, what-if copy"),
    ("src/api", "gate walk", "admission queue, message counter, authentication middleware"),
];

/// Phrases, as they are written in prose.
const BANNED_PHRASES: &[&str] = &[
    "held back",
    "hang up",
    "hangs up",
    "at the most",
    "as of now",
    "tried again",
    "takes turns",
    "whose turn",
    "the large ones",
    "of late",
    "is told",
];

const FOLDERS: [&str; 5] = ["src", "simulator", "proto", "docs", "CHANGELOG.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(path: PathBuf, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            files(entry.unwrap().path(), out);
        }
    } else if path.extension().is_some_and(|end| ["rs", "proto", "md"].iter().any(|known| end == *known)) {
        out.push(path);
    }
}

/// The words of a line in lower case: identifiers fall apart at underscores and at capital letters.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut lower) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        if !c.is_alphabetic() || (c.is_uppercase() && lower) {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        lower = c.is_lowercase();
        if c.is_alphabetic() {
            word.extend(c.to_lowercase());
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[test]
fn nothing_is_called_by_a_word_of_our_own() {
    let mut paths = Vec::new();
    FOLDERS.iter().for_each(|folder| files(root().join(folder), &mut paths));
    assert!(paths.len() > 200, "only {} files were found", paths.len());
    let mut found = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().to_owned();
        let local = BANNED_IN.iter().filter(|(folder, ..)| name.starts_with(folder));
        let banned: Vec<(&str, &str)> =
            BANNED.iter().copied().chain(local.map(|(_, words, instead)| (*words, *instead))).collect();
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let at = || format!("{}:{}", name.display(), number + 1);
            let line = NAMES.iter().fold(line.to_owned(), |line, name| line.replace(name, ""));
            for word in words(&line) {
                if let Some((_, instead)) =
                    banned.iter().find(|(words, _)| words.split(' ').any(|banned| banned == word))
                {
                    found.push(format!("{}: {word:?}: write {instead}", at()));
                }
            }
            // Between blanks, so that a phrase isn't found within other words.
            let prose = format!(" {} ", words(&line).join(" "));
            let phrases = BANNED_PHRASES.iter().filter(|phrase| prose.contains(&format!(" {phrase} ")));
            found.extend(phrases.map(|phrase| format!("{}: {phrase:?}", at())));
        }
    }
    assert!(found.is_empty(), "{} words to replace:\n{}", found.len(), found.join("\n"));
}

#[test]
fn identifiers_fall_apart_into_words() {
    assert_eq!(
        words("fn note_heard(NodesKept, KEPT_MAX)"),
        ["fn", "note", "heard", "nodes", "kept", "kept", "max"]
    );
    assert_eq!(words("timestamp saturating"), ["timestamp", "saturating"]);
}
