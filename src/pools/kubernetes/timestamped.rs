//! Output with the time of each line before it, as a kubelet gives it: the times tell what was read before,
//! even if the kubelet has thrown away the beginning since then.
//!
//! A line's time is that of its first piece. Both streams of a task are written side by side, so times go back
//! now and then, and when the node's clock is set: a line counts as of the latest time before it. What has no
//! time is not the task's but the kubelet's, a complaint; it comes with code 200, since the answer has begun.
//!
//! Not told apart: a complaint behind a line that has no end yet, which is taken for more of it. And a line of
//! many pieces that goes on after a rotation begins anew there, with another time: who comes after that reads
//! its pieces in the new file once more.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A time is shorter: `2006-01-02T15:04:05.000000000+08:00`.
const TIMESTAMP_MAX: usize = 40;
/// How much of a complaint is kept.
const COMPLAINT_MAX: usize = 256;
/// Seconds by which lines are out of order, at the most, unless a clock was set.
const DISORDER_S: i64 = 1;

/// How far output was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The latest time of a line.
    at: Timestamp,
    /// The earliest of that line and those after it.
    lowest: Timestamp,
    /// Their bytes.
    of_line: u64,
    /// Bytes in all.
    len: u64,
}

impl Mark {
    /// The time to ask for output from, in whole seconds, as a cluster understands no parts of one.
    pub(super) fn since(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.lowest.as_second().saturating_sub(DISORDER_S)).ok()
    }
}

/// Takes the times out of output, and leaves out what was read before.
pub(super) struct TimestampedLog {
    from: Option<Mark>,
    /// Bytes of what is read that are known.
    skip: u64,
    /// How many of them may come after the line that was marked.
    unmarked: u64,
    part: Part,
    /// How far it is read now, but for the bytes in all.
    line: Option<Mark>,
    complaint: Vec<u8>,
}

enum Part {
    /// The time of a line, as far as it was read.
    HighWaterMark(Vec<u8>),
    /// A line that comes after what was read before, or may.
    Line,
    /// One that was read before.
    Known,
    Complaint,
}

impl TimestampedLog {
    /// Goes on where output was read to, `len` bytes in all: a mark was made by then, or a little before.
    /// Without one the output must begin where it began then.
    pub(super) fn new(from: Option<Mark>, len: u64) -> Self {
        let skip = from.map_or(len, |mark| (mark.of_line + len).saturating_sub(mark.len));
        let unmarked = from.map_or(0, |mark| len.saturating_sub(mark.len));
        let part = Part::HighWaterMark(Vec::new());
        Self { from, skip, unmarked, part, line: None, complaint: Vec::new() }
    }

    /// Reads on; adds to `new` what wasn't read before.
    pub(super) fn read(&mut self, mut data: &[u8], new: &mut Vec<u8>) {
        while !data.is_empty() {
            if let Part::HighWaterMark(timestamp) = &mut self.part {
                let room = TIMESTAMP_MAX - timestamp.len();
                let end = data.iter().take(room).position(|byte| matches!(byte, b' ' | b'\n'));
                let (read, rest) = data.split_at(end.map_or(room.min(data.len()), |at| at + 1));
                timestamp.extend_from_slice(read);
                data = rest;
                if end.is_some() || timestamp.len() >= TIMESTAMP_MAX {
                    let timestamp = std::mem::take(timestamp);
                    self.begin(&timestamp, new);
                }
                continue;
            }
            let end = data.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let (line, rest) = data.split_at(end.unwrap_or(data.len()));
            data = rest;
            match self.part {
                Part::Line => self.take(line, new),
                Part::Complaint => {
                    let room = COMPLAINT_MAX.saturating_sub(self.complaint.len());
                    self.complaint.extend_from_slice(&line[..line.len().min(room)]);
                }
                Part::Known | Part::HighWaterMark(_) => {}
            }
            if end.is_some() {
                self.part = Part::HighWaterMark(Vec::new());
            }
        }
    }

    /// How far output has been read, if that is `len` bytes now; only after something new.
    pub(super) fn mark(&self, len: u64) -> Option<Mark> {
        self.line.map(|mark| Mark { len, ..mark })
    }

    /// What the kubelet has said instead of the rest of the output, once that has ended.
    pub(super) fn complaint(&self) -> Option<String> {
        let unended = match &self.part {
            Part::HighWaterMark(text) => &text[..],
            Part::Line | Part::Known | Part::Complaint => &[],
        };
        let text = [&self.complaint[..], unended].concat();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// A line begins with this.
    fn begin(&mut self, timestamp: &[u8], new: &mut Vec<u8>) {
        let text = timestamp.strip_suffix(b" ").and_then(|text| std::str::from_utf8(text).ok());
        let Some(at) = text.and_then(|text| text.parse::<Timestamp>().ok()) else {
            self.part = Part::Complaint;
            return self.read(timestamp, new);
        };
        // Who asks for output from some time on may first get the end of a line that began before.
        self.complaint.clear();
        if self.line.is_none() && self.from.is_some_and(|from| at < from.at) {
            self.part = Part::Known;
            return;
        }
        self.part = Part::Line;
        match &mut self.line {
            Some(line) if at <= line.at => line.lowest = line.lowest.min(at),
            line => {
                let before = line.replace(Mark { at, lowest: at, of_line: 0, len: 0 });
                if self.from.is_some_and(|from| at > from.at) {
                    // Without the line that was marked, what was read last is there no more.
                    self.skip = self.skip.min(before.map_or(0, |_| self.unmarked));
                }
            }
        }
    }

    fn take(&mut self, line: &[u8], new: &mut Vec<u8>) {
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(line.len());
        self.skip -= known as u64;
        new.extend_from_slice(&line[known..]);
        if let Some(mark) = &mut self.line {
            mark.of_line += line.len() as u64;
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
        let timestamp =
            |second: u32, nanos: u32, zone: &str| format!("2026-01-01T08:00:{second:02}.{nanos:09}{zone} ");
        let mut lines: Vec<_> =
            (0..40).map(|at| (timestamp(at / 9, at / 2, "+08:00"), format!("line {at}\n"))).collect();
        lines.push((timestamp(5, 0, "+08:00").replace("T08", "T00").replace("+08:00", "Z"), "\n".to_owned()));
        lines.push((timestamp(5, 1, "+08:00"), "a b c ".repeat(20)));
        lines
    }

    fn with_times(lines: &[(String, String)]) -> String {
        lines.iter().map(|(timestamp, line)| format!("{timestamp}{line}")).collect()
    }

    fn without(lines: &[(String, String)]) -> String {
        lines.iter().map(|(_, line)| line.as_str()).collect()
    }

    /// Reads in pieces of random sizes, marking each; returns what is new, and the last mark.
    fn read(from: Option<Mark>, len: u64, text: &str, rng: &mut StdRng) -> (String, Option<Mark>) {
        let mut stamped = TimestampedLog::new(from, len);
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
        broken_off_anywhere(&lines(), true);
        // Two streams are written side by side.
        let mut mixed = lines();
        (1..mixed.len()).step_by(3).for_each(|at| mixed.swap(at - 1, at));
        broken_off_anywhere(&mixed, true);
        // The clock is set back: who asks by the time before doesn't get what follows.
        mixed.pop();
        mixed.rotate_left(20);
        broken_off_anywhere(&mixed, false);
    }

    fn broken_off_anywhere(lines: &[(String, String)], by_time: bool) {
        let mut rng = StdRng::seed_from_u64(1);
        let (text, whole) = (with_times(lines), without(lines));
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
            if !by_time {
                continue;
            }
            let since = mark.and_then(|mark| mark.since()).unwrap_or_default();
            let from_then =
                lines.iter().filter(|(timestamp, _)| timestamp.trim().parse::<Timestamp>().unwrap() >= since);
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
        let mut stamped = TimestampedLog::new(None, 0);
        let mut new = Vec::new();
        stamped.read(b"2026-01-01T00:00:00.5Z one\n2026-01-01T00:00:01.5Z two", &mut new);
        let mark = stamped.mark(7).expect("something was read");
        assert_eq!(
            (new, mark.since().map(|since| since.to_string())),
            (b"one\ntwo".to_vec(), Some("2026-01-01T00:00:00Z".to_owned()))
        );
        let (mut stamped, mut new) = (TimestampedLog::new(Some(mark), 7), Vec::new());
        stamped.read(b"the end of a long line before\n2026-01-01T00:00:01.5Z two and a half\n", &mut new);
        assert_eq!(new, b" and a half\n");
        assert_eq!(stamped.complaint(), None);
    }

    #[test]
    fn complaints_of_the_kubelet_are_no_output() {
        let read = |from: Option<Mark>, len: u64, text: &[u8]| {
            let (mut stamped, mut new) = (TimestampedLog::new(from, len), Vec::new());
            stamped.read(text, &mut new);
            (new, stamped.complaint(), stamped.mark(len))
        };
        let complaint = "unable to retrieve container logs for containerd://1";
        let (new, said, mark) = read(None, 0, complaint.as_bytes());
        assert_eq!((new, said.as_deref(), mark), (Vec::new(), Some(complaint), None));
        assert_eq!(read(None, 0, b"unable").1.as_deref(), Some("unable"));
        let behind = format!("2026-01-01T00:00:00Z one\n{complaint}");
        let (new, said, mark) = read(None, 0, behind.as_bytes());
        assert_eq!((new, said.as_deref()), (b"one\n".to_vec(), Some(complaint)));
        // And it is not counted as read.
        let mark = mark.map(|mark| Mark { len: 4, ..mark });
        let (new, said, _) = read(mark, 4, b"2026-01-01T00:00:00Z one\n2026-01-01T00:00:00Z two\n");
        assert_eq!((new, said), (b"two\n".to_vec(), None));
        // Behind a line without an end it can't be told apart, but costs nothing that follows.
        let (new, _, mark) = read(None, 0, b"2026-01-01T00:00:00Z one, too many open files");
        let len = new.len() as u64;
        let mark = mark.map(|mark| Mark { len, ..mark });
        let (new, ..) = read(mark, len, b"2026-01-01T00:00:00Z one\n2026-01-01T00:00:01Z two\n");
        assert_eq!(new, b"two\n");
    }
}
