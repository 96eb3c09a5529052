//! The layer table of the design, held against the sources as text: who imports whom, what the
//! kernel must not contain, and how long a file may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every top-level module with its layer and the modules it may import. A module that is not here
/// has no place in the design; one that is here need not exist yet.
const TABLE: &[(&str, u32, &[&str])] = &[
    ("model", 0, &[]),
    ("state", 1, &["model"]),
    ("scheduler", 2, &["model", "state"]),
    ("broker", 3, &["model", "state", "scheduler"]),
    ("agent", 3, &["model", "state", "scheduler"]),
    ("clock", 4, &["model"]),
    ("lock", 4, &[]),
    ("files", 3, &[]),
    ("config", 4, &["model", "state", "files"]),
    ("telemetry", 4, &["model", "state"]),
    ("journal", 5, &["model", "state", "lock"]),
    // A pool's backend executes the agent's effects, so it speaks of them, in real time.
    ("pools", 5, &["model", "state", "agent", "clock", "files"]),
    (
        "runtime",
        6,
        &[
            "model",
            "state",
            "scheduler",
            "broker",
            "agent",
            "clock",
            "config",
            "telemetry",
            "journal",
            "pools",
        ],
    ),
    // The API carries what state and broker take and answer; it drives neither. Its agent side
    // reads the pools' logs.
    ("api", 7, &["model", "state", "broker", "clock", "pools", "runtime"]),
    ("dashboard", 7, &["model", "runtime"]),
    (
        "cli",
        8,
        &[
            "model",
            "state",
            "scheduler",
            "broker",
            "agent",
            "clock",
            "lock",
            "config",
            "telemetry",
            "journal",
            "pools",
            "runtime",
            "api",
            "dashboard",
        ],
    ),
];

/// Layers up to this one are the kernel.
const KERNEL_LAYER_MAX: u32 = 3;

/// What would let time, chance, I/O or an unstable order into the kernel.
const BANNED_IN_KERNEL: [&str; 9] =
    ["tokio", "async fn", "SystemTime", "Instant", "thread_rng", "rand::", "f32", "f64", "HashMap"];

/// What says that something is not finished.
const BANNED_EVERYWHERE: [&str; 3] = ["TODO", "FIXME", "for now"];

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;
const MAIN_LINES_MAX: usize = 19;

/// A source file under `src/`.
struct Source {
    path: PathBuf,
    text: String,
    /// Without test modules; comments are still there.
    product: Vec<String>,
}

impl Source {
    /// The top-level module that the file belongs to; `None` for the crate's roots.
    fn module(&self) -> Option<String> {
        let first = self.path.components().next()?.as_os_str().to_str()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!["lib", "main"].contains(&name)).then(|| name.to_owned())
    }

    /// How many `super` lead from the file to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.components().count();
        if self.path.ends_with("mod.rs") { parts - 1 } else { parts }
    }

    /// The product's code without comments.
    fn code(&self) -> String {
        self.product.iter().map(|line| format!("{}\n", line.split("//").next().unwrap_or_default())).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All sources, without files that are compiled for tests only.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let (mut sources, mut tests_only, mut folders) = (Vec::new(), BTreeSet::new(), vec![src.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let (product, tests) = split_tests(&text);
                let parent = if path.ends_with("mod.rs") || folder == src {
                    folder.clone()
                } else {
                    path.with_extension("")
                };
                tests_only.extend(tests.iter().map(|name| parent.join(format!("{name}.rs"))));
                sources.push(Source { path, text, product });
            }
        }
    }
    assert!(sources.len() > 30, "only {} files were found", sources.len());
    for source in &mut sources {
        if tests_only.contains(&source.path) {
            source.product.clear();
        }
        source.path = source.path.strip_prefix(&src).unwrap().to_owned();
    }
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    sources
}

/// The lines outside test modules, and the names of test modules in files of their own.
fn split_tests(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut product, mut names) = (Vec::new(), Vec::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            product.push(line.to_owned());
            continue;
        }
        let item = lines.next().unwrap_or_default();
        if let Some(name) = item.trim().strip_suffix(';').and_then(|item| item.rsplit(' ').next()) {
            names.push(name.to_owned());
            continue;
        }
        // The item ends where its indentation closes it.
        let indent = &item[..item.len() - item.trim_start().len()];
        let end = format!("{indent}}}");
        while !item.ends_with('}') && lines.next().is_some_and(|line| line != end) {}
    }
    (product, names)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `word` stands in `text` by itself, not as a part of a longer word.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_some_and(is_word);
        let after = word.ends_with(is_word) && text[at + word.len()..].starts_with(is_word);
        !before && !after
    })
}

/// The names after `crate::` in code.
fn imports(code: &str) -> BTreeSet<String> {
    let after = code.match_indices("crate::").map(|(at, prefix)| &code[at + prefix.len()..]);
    after.map(|rest| rest.chars().take_while(|c| is_word(*c)).collect()).collect()
}

/// The longest chain of `super::` in code.
fn supers(code: &str) -> usize {
    let steps = |at: usize| {
        let mut rest = &code[at..];
        std::iter::from_fn(|| rest.strip_prefix("super::").map(|shorter| rest = shorter)).count()
    };
    code.match_indices("super::").map(|(at, _)| steps(at)).max().unwrap_or(0)
}

#[test]
fn table_has_no_cycle_and_nobody_imports_upwards() {
    let layers: BTreeMap<&str, u32> = TABLE.iter().map(|(name, layer, _)| (*name, *layer)).collect();
    assert_eq!(layers.len(), TABLE.len(), "a module has two rows");
    for (name, layer, allowed) in TABLE {
        for other in *allowed {
            assert!(layers.get(other).is_some_and(|below| below < layer), "{name} may import {other}");
        }
    }
}

#[test]
fn every_module_has_a_row_and_keeps_to_it() {
    let mut broken = Vec::new();
    for source in sources() {
        let (path, code) = (source.path.display(), source.code());
        let Some(module) = source.module() else {
            if source.path.ends_with("lib.rs") && code.contains("fn ") {
                broken.push(format!("{path} does more than name its modules"));
            }
            continue;
        };
        let Some((_, _, allowed)) = TABLE.iter().find(|(name, _, _)| *name == module) else {
            broken.push(format!("{path}: module {module} is not in the layer table"));
            continue;
        };
        for import in imports(&code).iter().filter(|import| **import != module) {
            if !allowed.contains(&import.as_str()) {
                broken.push(format!("{path}: {module} may not import {import:?}"));
            }
        }
        // `super` up to the crate's root would be an import that the line above doesn't see.
        if supers(&code) >= source.depth() {
            broken.push(format!("{path} goes up to the crate's root by `super`"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn kernel_has_no_clock_no_chance_no_floats_and_no_tasks() {
    let mut broken = Vec::new();
    for source in sources() {
        let module = source.module();
        let layer = TABLE.iter().find(|(name, _, _)| Some(*name) == module.as_deref()).map(|row| row.1);
        if layer.is_none_or(|layer| layer > KERNEL_LAYER_MAX) {
            continue;
        }
        let code = source.code();
        let found = BANNED_IN_KERNEL.iter().filter(|word| has_word(&code, word));
        broken.extend(found.map(|word| format!("{} contains {word}", source.path.display())));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_is_finished_and_short() {
    let mut broken = Vec::new();
    for source in sources() {
        let path = source.path.display();
        if !source.text.starts_with("//! ") {
            broken.push(format!("{path} does not begin with what lives there"));
        }
        if source.product.len() > LINES_MAX {
            broken.push(format!("{path} has {} lines, {LINES_MAX} are allowed", source.product.len()));
        }
        let found = BANNED_EVERYWHERE.iter().filter(|word| has_word(&source.text, word));
        broken.extend(found.map(|word| format!("{path} contains {word:?}")));
    }
    let main = std::fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count();
    if main > MAIN_LINES_MAX {
        broken.push(format!("main.rs has {main} lines, {MAIN_LINES_MAX} are allowed"));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn readers_of_the_sources_see_what_they_look_for() {
    let text = "use crate::a::B;\n// crate::c\n#[cfg(test)]\nmod x;\n#[cfg(test)]\nmod tests {\n    f32\n}\nlet y = my_f64;\n";
    let (product, tests) = split_tests(text);
    assert_eq!(tests, ["x"]);
    let source = Source { path: PathBuf::from("p/q.rs"), text: text.to_owned(), product };
    let code = source.code();
    assert_eq!(code, "use crate::a::B;\n\nlet y = my_f64;\n");
    assert_eq!(imports(&code), BTreeSet::from(["a".to_owned()]));
    assert!(has_word("x: f64;", "f64") && !has_word(&code, "f64") && has_word("use rand::Rng", "rand::"));
    assert_eq!((source.depth(), supers("use super::super::x; super::y")), (2, 2));
    assert_eq!(source.module().as_deref(), Some("p"));
}
