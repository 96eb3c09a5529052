//! Files that expand when parsed: refused in time, within 256 MiB of memory, with a clear error.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::Home;

/// Time in which a file is refused, on a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// `levels` lists, each of which repeats an alias of the previous one `width` times.
fn alias_bomb(levels: usize, width: usize) -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..levels {
        let list = vec![format!("*a{}", level - 1); width].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    text
}

fn write_file(home: &Home, content: &str) -> PathBuf {
    let path = home.path().join("given.yaml");
    std::fs::write(&path, content).expect("a file");
    path
}

/// Checks that both commands that read files refuse this one.
fn check_refused(home: &Home, what: &str, path: &Path, expected: &str) {
    for command in ["submit", "apply"] {
        let sent_at = Instant::now();
        let (code, stdout, stderr) = home.run(&[command, "-f", path.to_str().expect("a plain path")]);
        let took = sent_at.elapsed();
        assert_eq!((code, stdout.as_str()), (8, ""), "{command}, {what}: {stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains("given.yaml:"),
            "{command}, {what}: {stderr}"
        );
        assert!(
            stderr.contains(expected) && stderr.len() < 4_096,
            "{command}, {what} lacks {expected:?}: {stderr}"
        );
        assert!(took < REFUSED_WITHIN, "{command}, {what}: {took:?}");
    }
}

#[test]
fn expanding_files_are_refused_in_time_and_in_bounded_memory() {
    let mut home = Home::new();
    // The command's limit on private memory, in KiB.
    home.limits = "-d 262144";
    let vast = home.path().join("given.yaml");
    let file = std::fs::File::create(&vast).expect("a file");
    file.set_len(100 << 20).expect("a hundred mebibytes of nothing");
    check_refused(&home, "100 MiB", &vast, "is longer than 16777216 bytes");
    let rows: Vec<(&str, String, &str)> = vec![
        ("a billion laughs", alias_bomb(9, 9), ""),
        ("wide laughs", alias_bomb(3, 4_000), ""),
        ("deep laughs", alias_bomb(60, 2), ""),
        (
            "a long text with many aliases",
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
    for (what, content, expected) in rows {
        let path = write_file(&home, &content);
        check_refused(&home, what, &path, expected);
    }
    // Within the limits the error is about the fields, not the depth.
    let path = write_file(&home, &format!("{{\"a\": {}0{}}}", "[".repeat(60), "]".repeat(60)));
    check_refused(&home, "60 levels", &path, "unknown field \"a\"");
}
