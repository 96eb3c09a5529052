//! Output with the time of each line before it, as a kubelet gives it: the times tell what was read before,
//! even if the kubelet has thrown away the beginning since then.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A time is shorter: `2006-01-02T15:04:05.000000000+08:00`.
const STAMP_MAX: usize = 40;

/// How far output was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The time of the last line.
    at: Timestamp,
    /// Bytes of the lines of that time.
    of_line: u64,
    /// Bytes in all.
    len: u64,
}

impl Mark {
    /// The time to ask for output from, in whole seconds, as a cluster understands no parts of one.
    pub(super) fn since(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.at.as_second()).ok()
    }
}

/// Takes the times out of output, and leaves out what was read before.
pub(super) struct Stamped {
    from: Option<Mark>,
    /// Bytes of what is read that are known.
    skip: u64,
    part: Part,
    /// The time of the line at hand, with how many bytes were read of lines of this time.
    line: Option<(Timestamp, u64)>,
}

enum Part {
    /// The time of a line, as far as it was read.
    Stamp(Vec<u8>),
    /// A line, and whether it comes after what was read before, or may.
    Line { may_be_new: bool },
}

impl Stamped {
    /// Goes on where output was read to, `len` bytes in all: a mark was made by then, or a little before.
    /// Without one the output must begin where it began then.
    pub(super) fn new(from: Option<Mark>, len: u64) -> Self {
        let from = from.filter(|mark| mark.len <= len);
        let skip = from.map_or(len, |mark| mark.of_line + (len - mark.len));
        Self { from, skip, part: Part::Stamp(Vec::new()), line: None }
    }

    /// Reads on; adds to `new` what wasn't read before.
    pub(super) fn read(&mut self, mut data: &[u8], new: &mut Vec<u8>) {
        while !data.is_empty() {
            let (until, may_be_new) = match &mut self.part {
                Part::Stamp(stamp) => {
                    let room = STAMP_MAX - stamp.len();
                    let end = data.iter().take(room).position(|byte| *byte == b' ');
                    let (read, rest) = data.split_at(end.map_or(room.min(data.len()), |at| at + 1));
                    stamp.extend_from_slice(read);
                    data = rest;
                    if end.is_some() || stamp.len() >= STAMP_MAX || stamp.contains(&b'\n') {
                        let stamp = std::mem::take(stamp);
                        self.begin(&stamp, new);
                    }
                    continue;
                }
                Part::Line { may_be_new } => {
                    (data.iter().position(|byte| *byte == b'\n').map(|at| at + 1), *may_be_new)
                }
            };
            let (line, rest) = data.split_at(until.unwrap_or(data.len()));
            data = rest;
            if may_be_new {
                self.take(line, new);
            }
            if until.is_some() {
                self.part = Part::Stamp(Vec::new());
            }
        }
    }

    /// How far output has been read, if that is `len` bytes now; only after something new.
    pub(super) fn mark(&self, len: u64) -> Option<Mark> {
        self.line.map(|(at, of_line)| Mark { at, of_line, len })
    }

    /// A line begins with this.
    fn begin(&mut self, stamp: &[u8], new: &mut Vec<u8>) {
        let text = stamp.strip_suffix(b" ").and_then(|text| std::str::from_utf8(text).ok());
        let Some(at) = text.and_then(|text| text.parse::<Timestamp>().ok()) else {
            // It has no time: it goes on with the line before, or with one that was read before.
            self.part = Part::Line { may_be_new: self.from.is_none() || self.line.is_some() };
            return self.read(stamp, new);
        };
        let may_be_new = self.from.is_none_or(|from| at >= from.at);
        self.part = Part::Line { may_be_new };
        if !may_be_new {
            return;
        }
        if self.line.is_none() && self.from.is_some_and(|from| at > from.at) {
            // What was read last is there no more.
            self.skip = 0;
        }
        if self.line.is_none_or(|(of, _)| of != at) {
            self.line = Some((at, 0));
        }
    }

    fn take(&mut self, line: &[u8], new: &mut Vec<u8>) {
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(line.len());
        self.skip -= known as u64;
        new.extend_from_slice(&line[known..]);
        if let Some((_, of_line)) = &mut self.line {
            *of_line += line.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Lines, some of one time and some from another time zone, and a long one that has no end yet.
    fn lines() -> Vec<(String, String)> {
        let stamp =
            |second: u32, nanos: u32, zone: &str| format!("2026-01-01T08:00:{second:02}.{nanos:09}{zone} ");
        let mut lines: Vec<_> =
            (0..40).map(|at| (stamp(at / 9, at / 2, "+08:00"), format!("line {at}\n"))).collect();
        lines.push((stamp(5, 0, "+08:00").replace("T08", "T00").replace("+08:00", "Z"), "\n".to_owned()));
        lines.push((stamp(5, 1, "+08:00"), "a b c ".repeat(20)));
        lines
    }

    fn with_times(lines: &[(String, String)]) -> String {
        lines.iter().map(|(stamp, line)| format!("{stamp}{line}")).collect()
    }

    fn without(lines: &[(String, String)]) -> String {
        lines.iter().map(|(_, line)| line.as_str()).collect()
    }

    /// Reads in pieces of random sizes, marking each; returns what is new, and the last mark.
    fn read(from: Option<Mark>, len: u64, text: &str, rng: &mut StdRng) -> (String, Option<Mark>) {
        let mut stamped = Stamped::new(from, len);
        let (mut all, mut mark, mut rest) = (Vec::new(), from, text.as_bytes());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rng.random_range(1..=rest.len().min(50)));
            rest = after;
            let known = all.len();
            stamped.read(piece, &mut all);
            if all.len() > known {
                mark = stamped.mark(len + all.len() as u64);
            }
        }
        (String::from_utf8(all).expect("text"), mark)
    }

    #[test]
    fn output_that_breaks_off_anywhere_is_read_once() {
        let (lines, mut rng) = (lines(), StdRng::seed_from_u64(1));
        let (text, whole) = (with_times(&lines), without(&lines));
        assert_eq!(read(None, 0, &text, &mut rng).0, whole);
        for end in 0..=text.len() {
            let (mut first, mark) = read(None, 0, &text[..end], &mut rng);
            // Something may have been written that no mark was made of.
            let unmarked = rng.random_range(0..20).min(whole.len() - first.len());
            if mark.is_some() {
                first = whole[..first.len() + unmarked].to_owned();
            }
            let (second, _) = read(mark, first.len() as u64, &text, &mut rng);
            assert_eq!(format!("{first}{second}"), whole, "{end}");
            // Without a mark, as well.
            let (second, _) = read(None, first.len() as u64, &text, &mut rng);
            assert_eq!(format!("{first}{second}"), whole, "{end}");
            let since = mark.and_then(|mark| mark.since()).unwrap_or_default();
            let from_then =
                lines.iter().filter(|(stamp, _)| stamp.trim().parse::<Timestamp>().unwrap() >= since);
            let from_then = with_times(&from_then.cloned().collect::<Vec<_>>());
            let (second, _) = read(mark, first.len() as u64, &from_then, &mut rng);
            assert_eq!(format!("{first}{second}"), whole, "{end}, asked for from {since}");
        }
    }

    #[test]
    fn what_is_left_after_a_rotation_is_read_once() {
        let (lines, mut rng) = (lines(), StdRng::seed_from_u64(2));
        for end in 1..lines.len() {
            let (first, mark) = read(None, 0, &with_times(&lines[..end]), &mut rng);
            assert_eq!(first, without(&lines[..end]));
            // The time of the last line read must not go on behind the cut, or nobody could tell.
            for cut in (0..lines.len()).filter(|cut| *cut == 0 || lines[*cut].0 != lines[*cut - 1].0) {
                let left = &lines[cut..];
                let (second, _) = read(mark, first.len() as u64, &with_times(left), &mut rng);
                assert_eq!(second, without(&lines[end.max(cut)..]), "read {end}, cut {cut}");
            }
        }
    }

    #[test]
    fn line_that_was_cut_goes_on_without_a_time() {
        let mut stamped = Stamped::new(None, 0);
        let mut new = Vec::new();
        stamped.read(b"2026-01-01T00:00:00.5Z one\n2026-01-01T00:00:01.5Z two", &mut new);
        let mark = stamped.mark(7).expect("something was read");
        assert_eq!(
            (new, mark.since().map(|since| since.to_string())),
            (b"one\ntwo".to_vec(), Some("2026-01-01T00:00:01Z".to_owned()))
        );
        let (mut stamped, mut new) = (Stamped::new(Some(mark), 7), Vec::new());
        stamped.read(b"the end of a long line before\n2026-01-01T00:00:01.5Z two and a half\n", &mut new);
        assert_eq!(new, b" and a half\n");
        let (mut stamped, mut new) = (Stamped::new(None, 0), Vec::new());
        stamped.read(b"unable to retrieve container logs\n2026-01-01T00:00:00Z 1\n", &mut new);
        assert_eq!(new, b"unable to retrieve container logs\n1\n");
    }
}
