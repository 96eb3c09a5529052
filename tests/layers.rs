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
    ("api", 7, &["model", "state", "broker", "clock", "telemetry", "pools", "runtime"]),
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
            "files",
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

/// All sources of the library, without files that are compiled for tests only.
fn sources() -> Vec<Source> {
    sources_of("src")
}

fn sources_of(folder: &str) -> Vec<Source> {
    let src = root().join(folder);
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
                tests_only.extend(
                    tests.iter().flat_map(|name| [parent.join(format!("{name}.rs")), parent.join(name)]),
                );
                sources.push(Source { path, text, product });
            }
        }
    }
    assert!(sources.len() > 30, "only {} files were found", sources.len());
    for source in &mut sources {
        if tests_only.iter().any(|file_or_folder| source.path.starts_with(file_or_folder)) {
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

/// The paths that a `use` tree names: `a::{b::C, d}` is `a::b::C` and `a::d`. `tree` begins with the path.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let mut head = Vec::new();
    let mut rest = tree;
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            // The commas between its parts, and its end.
            let (mut depth, mut parts, mut start) = (0, Vec::new(), 0);
            for (at, c) in group.char_indices() {
                depth += i32::from(c == '{') - i32::from(c == '}');
                if depth < 0 || c == ',' && depth == 0 {
                    parts.push(&group[start..at]);
                    start = at + 1;
                }
                if depth < 0 {
                    break;
                }
            }
            let with_head = |tail: Vec<String>| head.iter().cloned().chain(tail).collect();
            return parts.into_iter().flat_map(|part| paths(part.trim())).map(with_head).collect();
        }
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        if name.is_empty() {
            return vec![head];
        }
        rest = &rest[name.len()..];
        head.push(name);
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => return vec![head],
        }
    }
}

/// The file that defines the first file module on a path from a folder, if one does.
fn file_at(files: &BTreeSet<PathBuf>, folder: &Path, path: &[String]) -> Option<PathBuf> {
    let mut folder = folder.to_owned();
    for name in path {
        let file = folder.join(format!("{name}.rs"));
        if files.contains(&file) {
            return Some(file);
        }
        folder.push(name);
    }
    None
}

/// The files that a file imports from, but for the `mod.rs` of folders: a folder and its files know each other.
fn imported_files(files: &BTreeSet<PathBuf>, source: &Source) -> BTreeSet<PathBuf> {
    let code = source.code();
    let mut imported = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let found = paths(&code[at + prefix.len()..]);
        imported.extend(found.iter().filter_map(|path| file_at(files, Path::new(""), path)));
    }
    for (at, prefix) in code.match_indices("super::") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let (mut rest, mut folder) = (&code[at + prefix.len()..], source.path.parent());
        while let Some(more) = rest.strip_prefix("super::") {
            (rest, folder) = (more, folder.and_then(Path::parent));
        }
        let Some(folder) = folder else { continue };
        imported.extend(paths(rest).iter().filter_map(|path| file_at(files, folder, path)));
    }
    imported.remove(&source.path);
    imported
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for folder in ["src", "simulator/src"] {
        let sources = sources_of(folder);
        let leaves = || sources.iter().filter(|source| !source.path.ends_with("mod.rs"));
        let files: BTreeSet<PathBuf> = leaves().map(|source| source.path.clone()).collect();
        let mut imports: BTreeMap<PathBuf, BTreeSet<PathBuf>> =
            leaves().map(|source| (source.path.clone(), imported_files(&files, source))).collect();
        assert!(imports.values().map(BTreeSet::len).sum::<usize>() > files.len(), "imports are not found");
        // Files whose imports are all removed are in no circle.
        loop {
            let free: BTreeSet<PathBuf> =
                imports.iter().filter(|(_, of)| of.is_empty()).map(|(path, _)| path.clone()).collect();
            if free.is_empty() {
                break;
            }
            imports.retain(|path, _| !free.contains(path));
            imports.values_mut().for_each(|of| of.retain(|path| !free.contains(path)));
        }
        assert!(imports.is_empty(), "{folder}: circles among {imports:#?}");
    }
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
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(paths("a::{b::{C, D}, e};"), [path("a::b::C"), path("a::b::D"), path("a::e")]);
    let files = BTreeSet::from([PathBuf::from("p/r.rs"), PathBuf::from("a/b.rs")]);
    let other = "use super::r::X;\nuse crate::a::{self, b::Y};\nuse super::q::Z;\n";
    let lines = other.lines().map(str::to_owned).collect();
    let source = Source { path: PathBuf::from("p/q.rs"), text: String::new(), product: lines };
    assert_eq!(imported_files(&files, &source), files);
    assert_eq!((source.depth(), supers("use super::super::x; super::y")), (2, 2));
    assert_eq!(source.module().as_deref(), Some("p"));
}
