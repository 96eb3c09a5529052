//! Files that are bombs: refused soon, within a quarter of a gigabyte, with a clear word.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::Home;

/// In which a file is refused, on a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// Lists of lists, each of which names the one before so many times.
fn alias_bomb(levels: usize, width: usize) -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..levels {
        let list = vec![format!("*a{}", level - 1); width].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    text
}

fn written(home: &Home, content: &str) -> PathBuf {
    let path = home.path().join("given.yaml");
    std::fs::write(&path, content).expect("a file");
    path
}

/// Has both commands that read files refuse this one.
fn refused(home: &Home, what: &str, path: &Path, says: &str) {
    for command in ["submit", "apply"] {
        let asked = Instant::now();
        let (code, printed, said) = home.run(&[command, "-f", path.to_str().expect("a plain path")]);
        let took = asked.elapsed();
        assert_eq!((code, printed.as_str()), (8, ""), "{command}, {what}: {said}");
        assert!(said.starts_with("error: ") && said.contains("given.yaml: "), "{command}, {what}: {said}");
        assert!(said.contains(says) && said.len() < 4_096, "{command}, {what} lacks {says:?}: {said}");
        assert!(took < REFUSED_WITHIN, "{command}, {what}: {took:?}");
    }
}

#[test]
fn bombs_are_refused_soon_and_within_little_memory() {
    let mut home = Home::new();
    // Kibibytes of memory of its own that the command may take.
    home.limits = "-d 262144";
    let vast = home.path().join("given.yaml");
    let file = std::fs::File::create(&vast).expect("a file");
    file.set_len(100 << 20).expect("a hundred mebibytes of nothing");
    refused(&home, "100 MiB", &vast, "is longer than 16777216 bytes");
    let rows: Vec<(&str, String, &str)> = vec![
        ("a billion laughs", alias_bomb(9, 9), ""),
        ("wide laughs", alias_bomb(3, 4_000), ""),
        ("deep laughs", alias_bomb(60, 2), ""),
        (
            "a long text, named often",
            format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(1_000)),
            "",
        ),
        ("merges of merges", format!("{}c: {{<<: [{}]}}\n", alias_bomb(2, 9), "*a1, ".repeat(9_000)), ""),
        ("1,025 documents", "---\nname: a\n".repeat(1_025), "holds more than 1024 YAML documents"),
        ("a million separators", "---\n".repeat(1_000_000), "holds more than 1024 YAML documents"),
        ("lists in JSON", format!("[{}[]]", "[],".repeat(5_000_000)), "holds more than 1000000 values"),
        ("numbers in JSON", format!("[{}0]", "0,".repeat(8_000_000)), "holds more than 1000000 values"),
        ("items in YAML", "- x\n".repeat(4_000_000), "holds more than 1000000 values"),
        (
            "65 levels of JSON",
            format!("{{\"a\": {}0{}}}", "[".repeat(65), "]".repeat(65)),
            "more than 64 levels",
        ),
        ("65 levels of YAML", format!("a: {}0{}", "[".repeat(65), "]".repeat(65)), "64 levels"),
        ("65 maps", format!("{}0{}", "{\"a\": ".repeat(66), "}".repeat(66)), "more than 64 levels"),
        ("a hundred thousand levels", "[".repeat(100_000), ""),
        ("a hundred thousand dashes", "- ".repeat(100_000), ""),
        ("a key of 8 MiB", format!("{}: 1\n", "k".repeat(8 << 20)), ""),
        ("a JSON key of 8 MiB", format!("{{\"{}\": 1}}", "k".repeat(8 << 20)), "unknown field"),
    ];
    for (what, content, says) in rows {
        let path = written(&home, &content);
        refused(&home, what, &path, says);
    }
    // Up to the limits it is the fields that are wrong, not the depth.
    let path = written(&home, &format!("{{\"a\": {}0{}}}", "[".repeat(60), "]".repeat(60)));
    refused(&home, "60 levels", &path, "unknown field \"a\"");
}
