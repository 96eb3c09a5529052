//! Parses output in which each line follows its timestamp, as a kubelet returns it with `timestamps=true`.
//!
//! The timestamps show which lines were read before, even if the kubelet has since rotated away the beginning.
//!
//! A line has the time of its first piece. A task's two streams are interleaved, so times can decrease; they
//! also decrease when the node's clock is set back. A line is therefore compared by the latest time up to it.
//! Text without a timestamp comes from the kubelet, not from the task: it is an error message. It arrives with
//! status 200, because the response had begun.
//!
//! Two cases can't be distinguished. An error message after a line that has no end yet is taken for more of that
//! line. And a line of several pieces that continues after a rotation has another time in the new file: a later
//! read returns those pieces again.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::time::Timestamp as WrittenAt;

/// Upper bound of a timestamp's length in bytes. The longest is `2006-01-02T15:04:05.000000000+08:00`.
const TIMESTAMP_LEN_MAX: usize = 40;
/// How many bytes of a kubelet's error message are retained.
const KUBELET_ERROR_LEN_MAX: usize = 256;
/// By how many seconds lines are out of order at most, unless a clock was set.
const DISORDER_MAX_S: i64 = 1;

/// The position up to which output was read. Stored as JSON, so the field names are a file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The latest time of any line.
    at: Timestamp,
    /// The earliest time among that line and the lines after it.
    lowest: Timestamp,
    /// Bytes of that line and of the lines after it.
    of_line: u64,
    /// Bytes read in all.
    len: u64,
}

/// What was read before a line of a later second begins, and the latest time until there.
pub(super) struct Cut {
    /// Of the output that a call of [`TimestampedLog::read`] has appended to.
    pub(super) len: usize,
    pub(super) at: WrittenAt,
}

impl Position {
    /// When the last of what was read was written.
    pub(super) fn written_at(&self) -> WrittenAt {
        WrittenAt(u64::try_from(self.at.as_millisecond()).unwrap_or_default())
    }

    /// Bytes read in all.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The `sinceTime` with which to request more output. In whole seconds: the API accepts no fractions.
    pub(super) fn since(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.lowest.as_second().saturating_sub(DISORDER_MAX_S)).ok()
    }
}

/// Removes timestamps from output, and skips what was read before.
pub(super) struct TimestampedLog {
    from: Option<Position>,
    /// Bytes still to skip because they were read before.
    skip: u64,
    /// How many of them may have been read after `from` was stored.
    after_from: u64,
    part: Part,
    /// The present position, without the bytes in all.
    line: Option<Position>,
    kubelet_error: Vec<u8>,
    cuts: Vec<Cut>,
}

/// What the next byte belongs to.
enum Part {
    /// A line's timestamp, with the bytes read so far.
    Timestamp(Vec<u8>),
    /// A line at or after the stored position. `skip` decides how much of it is new.
    Line,
    /// A line before the stored position.
    Skipped,
    KubeletError,
}

impl TimestampedLog {
    /// Continues after `len` bytes of output. `from` is the last position stored, at `len` or a little before.
    /// Without a position, the output must begin where it began the first time.
    pub(super) fn new(from: Option<Position>, len: u64) -> Self {
        let skip = from.map_or(len, |from| (from.of_line + len).saturating_sub(from.len));
        let after_from = from.map_or(0, |from| len.saturating_sub(from.len));
        let part = Part::Timestamp(Vec::new());
        Self { from, skip, after_from, part, line: None, kubelet_error: Vec::new(), cuts: Vec::new() }
    }

    /// Parses more data, and appends the output that was not read before to `new`.
    pub(super) fn read(&mut self, mut data: &[u8], new: &mut Vec<u8>) {
        while !data.is_empty() {
            if let Part::Timestamp(timestamp) = &mut self.part {
                let space = TIMESTAMP_LEN_MAX - timestamp.len();
                let end = data.iter().take(space).position(|byte| matches!(byte, b' ' | b'\n'));
                let (read, rest) = data.split_at(end.map_or(space.min(data.len()), |at| at + 1));
                timestamp.extend_from_slice(read);
                data = rest;
                if end.is_some() || timestamp.len() >= TIMESTAMP_LEN_MAX {
                    let timestamp = std::mem::take(timestamp);
                    self.begin_line(&timestamp, new);
                }
                continue;
            }
            let end = data.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let (line, rest) = data.split_at(end.unwrap_or(data.len()));
            data = rest;
            match self.part {
                Part::Line => self.take_line(line, new),
                Part::KubeletError => {
                    let space = KUBELET_ERROR_LEN_MAX.saturating_sub(self.kubelet_error.len());
                    self.kubelet_error.extend_from_slice(&line[..line.len().min(space)]);
                }
                Part::Skipped | Part::Timestamp(_) => {}
            }
            if end.is_some() {
                self.part = Part::Timestamp(Vec::new());
            }
        }
    }

    /// The cuts in what was read since the last call.
    pub(super) fn take_cuts(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cuts)
    }

    /// The position after `len` bytes of output in all; `None` until a line of this response has begun.
    pub(super) fn position(&self, len: u64) -> Option<Position> {
        self.line.map(|line| Position { len, ..line })
    }

    /// The error message that the kubelet sent in place of the rest of the output, once the response has ended.
    pub(super) fn kubelet_error(&self) -> Option<String> {
        let unended = match &self.part {
            Part::Timestamp(text) => &text[..],
            Part::Line | Part::Skipped | Part::KubeletError => &[],
        };
        let text = [&self.kubelet_error[..], unended].concat();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Begins a line. `timestamp` is the text before its first space.
    fn begin_line(&mut self, timestamp: &[u8], new: &mut Vec<u8>) {
        let text = timestamp.strip_suffix(b" ").and_then(|text| std::str::from_utf8(text).ok());
        let Some(at) = text.and_then(|text| text.parse::<Timestamp>().ok()) else {
            self.part = Part::KubeletError;
            return self.read(timestamp, new);
        };
        // Text before the first timestamp may also be the end of a line that began before `sinceTime`, so it was
        // not an error message.
        self.kubelet_error.clear();
        if self.line.is_none() && self.from.is_some_and(|from| at < from.at) {
            self.part = Part::Skipped;
            return;
        }
        self.part = Part::Line;
        match &mut self.line {
            Some(line) if at <= line.at => line.lowest = line.lowest.min(at),
            line => {
                let before = line.replace(Position { at, lowest: at, of_line: 0, len: 0 });
                if self.from.is_some_and(|from| at > from.at) {
                    // If the line of the stored position was rotated away, so was all that was read before it.
                    self.skip = self.skip.min(before.map_or(0, |_| self.after_from));
                }
                // What was read in an earlier response comes before the first line of this one. While bytes are skipped it
                // is not known where a line of this one begins.
                let earlier = before.or(self.from).filter(|_| self.skip == 0);
                if let Some(before) = earlier.filter(|before| before.at.as_second() < at.as_second()) {
                    self.cuts.push(Cut { len: new.len(), at: before.written_at() });
                }
            }
        }
    }

    fn take_line(&mut self, line: &[u8], new: &mut Vec<u8>) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(line.len());
        self.skip -= skipped as u64;
        new.extend_from_slice(&line[skipped..]);
        if let Some(position) = &mut self.line {
            position.of_line += line.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Lines: some share a time, some have another time zone, and a long one has no end yet.
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

    /// Reads in pieces of random sizes, with a position after each. Returns the new output and the last position.
    fn read(from: Option<Position>, len: u64, text: &str, rng: &mut StdRng) -> (String, Option<Position>) {
        let mut log = TimestampedLog::new(from, len);
        let (mut all, mut position, mut rest) = (Vec::new(), from, text.as_bytes());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rng.random_range(1..=rest.len().min(50)));
            rest = after;
            let before = all.len();
            log.read(piece, &mut all);
            if all.len() > before {
                position = log.position(len + all.len() as u64);
            }
        }
        (String::from_utf8(all).expect("text"), position)
    }

    #[test]
    fn output_interrupted_at_any_byte_is_read_once() {
        check_interruptions(&lines(), true);
        // Two streams are interleaved.
        let mut mixed = lines();
        (1..mixed.len()).step_by(3).for_each(|at| mixed.swap(at - 1, at));
        check_interruptions(&mixed, true);
        // The clock is set back: a request with the earlier time doesn't return what follows.
        mixed.pop();
        mixed.rotate_left(20);
        check_interruptions(&mixed, false);
    }

    fn check_interruptions(lines: &[(String, String)], by_time: bool) {
        let mut rng = StdRng::seed_from_u64(1);
        let (text, whole) = (with_times(lines), without(lines));
        assert_eq!(read(None, 0, &text, &mut rng).0, whole);
        for end in 0..=text.len() {
            let (mut first, position) = read(None, 0, &text[..end], &mut rng);
            // Output may have been written to the file after the last position was stored.
            let unstored = rng.random_range(0..20).min(whole.len() - first.len());
            if position.is_some() {
                first = whole[..first.len() + unstored].to_owned();
            }
            let (second, _) = read(position, first.len() as u64, &text, &mut rng);
            assert_eq!(format!("{first}{second}"), whole, "{end}");
            // Also without a position.
            let (second, _) = read(None, first.len() as u64, &text, &mut rng);
            assert_eq!(format!("{first}{second}"), whole, "{end}");
            if !by_time {
                continue;
            }
            let since = position.and_then(|position| position.since()).unwrap_or_default();
            let from_then =
                lines.iter().filter(|(timestamp, _)| timestamp.trim().parse::<Timestamp>().unwrap() >= since);
            let from_then = with_times(&from_then.cloned().collect::<Vec<_>>());
            let (second, _) = read(position, first.len() as u64, &from_then, &mut rng);
            assert_eq!(format!("{first}{second}"), whole, "{end}, requested since {since}");
        }
    }

    #[test]
    fn output_left_after_a_rotation_is_read_once() {
        let (lines, mut rng) = (lines(), StdRng::seed_from_u64(2));
        for end in 1..lines.len() {
            let (first, position) = read(None, 0, &with_times(&lines[..end]), &mut rng);
            assert_eq!(first, without(&lines[..end]));
            // A cut between two lines of one time is left out: the lines before and after it can't be
            // distinguished.
            for cut in (0..lines.len()).filter(|cut| *cut == 0 || lines[*cut].0 != lines[*cut - 1].0) {
                let left = &lines[cut..];
                let (second, _) = read(position, first.len() as u64, &with_times(left), &mut rng);
                assert_eq!(second, without(&lines[end.max(cut)..]), "read {end}, cut {cut}");
            }
        }
    }

    #[test]
    fn line_that_was_cut_continues_without_a_timestamp() {
        let mut log = TimestampedLog::new(None, 0);
        let mut new = Vec::new();
        log.read(b"2026-01-01T00:00:00.5Z one\n2026-01-01T00:00:01.5Z two", &mut new);
        let position = log.position(7).expect("something was read");
        assert_eq!(
            (new, position.since().map(|since| since.to_string())),
            (b"one\ntwo".to_vec(), Some("2026-01-01T00:00:00Z".to_owned()))
        );
        let (mut log, mut new) = (TimestampedLog::new(Some(position), 7), Vec::new());
        log.read(b"the end of a long line before\n2026-01-01T00:00:01.5Z two and a half\n", &mut new);
        assert_eq!(new, b" and a half\n");
        assert_eq!(log.kubelet_error(), None);
    }

    #[test]
    fn error_messages_of_the_kubelet_are_not_output() {
        let read = |from: Option<Position>, len: u64, text: &[u8]| {
            let (mut log, mut new) = (TimestampedLog::new(from, len), Vec::new());
            log.read(text, &mut new);
            (new, log.kubelet_error(), log.position(len))
        };
        let message = "unable to retrieve container logs for containerd://1";
        let (new, error, position) = read(None, 0, message.as_bytes());
        assert_eq!((new, error.as_deref(), position), (Vec::new(), Some(message), None));
        assert_eq!(read(None, 0, b"unable").1.as_deref(), Some("unable"));
        let after_line = format!("2026-01-01T00:00:00Z one\n{message}");
        let (new, error, position) = read(None, 0, after_line.as_bytes());
        assert_eq!((new, error.as_deref()), (b"one\n".to_vec(), Some(message)));
        // The message does not count as read output.
        let position = position.map(|position| Position { len: 4, ..position });
        let (new, error, _) = read(position, 4, b"2026-01-01T00:00:00Z one\n2026-01-01T00:00:00Z two\n");
        assert_eq!((new, error), (b"two\n".to_vec(), None));
        // After a line without an end the message is taken for output, but no later line is lost.
        let (new, _, position) = read(None, 0, b"2026-01-01T00:00:00Z one, too many open files");
        let len = new.len() as u64;
        let position = position.map(|position| Position { len, ..position });
        let (new, ..) = read(position, len, b"2026-01-01T00:00:00Z one\n2026-01-01T00:00:01Z two\n");
        assert_eq!(new, b"two\n");
    }
}
