//! Events that are retained after a snapshot covers them.

use super::{Writer, each, encoded, recover};
use crate::journal::{Journal, RetainedEvents};
use crate::model::id::Revision;
use crate::model::time::Timestamp;

/// All events after a revision, read page by page, and the floor of the last page.
fn read(journal: &dyn Journal, mut after: Revision) -> (Revision, Vec<(Revision, Timestamp)>) {
    let (mut archive, mut all) = (journal.archive().unwrap(), Vec::new());
    loop {
        let page = archive.events(after).unwrap();
        let Some(last) = page.events.last() else { return (page.floor, all) };
        assert!(page.events.first().is_some_and(|first| first.revision == after.next()), "a gap");
        after = last.revision;
        all.extend(page.events.iter().map(|event| (event.revision, event.at)));
    }
}

/// A writer of a thousand events at ten instants, a second apart, all covered by a snapshot.
fn covered(journal: &mut dyn Journal) -> Writer<'_> {
    let mut writer = Writer::begin(journal);
    for _ in 0..10 {
        writer.fixture.now = writer.fixture.now.plus_ms(1_000);
        for _ in 0..40 {
            writer.submit().unwrap();
        }
    }
    let (term, chunks) = (writer.term, writer.chunks());
    chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
    writer
}

#[test]
fn events_are_read_from_any_revision_on_without_gaps() {
    each(|journal| {
        let writer = covered(journal);
        let end = writer.durable;
        let (floor, all) = read(writer.journal, Revision(0));
        assert_eq!((floor, all.len() as u64), (Revision(0), end.0));
        for after in [1, 7, end.0 / 2, end.0 - 1, end.0] {
            let (_, rest) = read(writer.journal, Revision(after));
            assert_eq!(rest, all[after as usize..], "after {after}");
        }
        // Beyond the end there is nothing.
        assert_eq!(read(writer.journal, Revision(end.0 + 5)).1, []);
    });
}

#[test]
fn revision_before_an_instant_leaves_out_no_later_event_and_few_earlier_ones() {
    each(|journal| {
        let writer = covered(journal);
        let (_, all) = read(writer.journal, Revision(0));
        let (first, last) = (all[0].1, all[all.len() - 1].1);
        for at in [Timestamp(0), first, first.plus_ms(2_500), first.plus_ms(5_000), last, last.plus_ms(1)] {
            let after = writer.journal.archive().unwrap().revision_before(at).unwrap();
            let missed = all.iter().filter(|(revision, when)| *revision <= after && *when >= at).count();
            let early = all.iter().filter(|(revision, when)| *revision > after && *when < at).count();
            // A batch has events of one instant here.
            assert_eq!((missed, early), (0, 0), "{at} begins after {after}");
        }
    });
}

#[test]
fn events_are_retained_by_number_and_by_age_and_pruned_before() {
    each(|journal| {
        let mut writer = covered(journal);
        let (_, all) = read(writer.journal, Revision(0));
        let (end, state) = (writer.durable, writer.state());
        let prune = |journal: &mut dyn Journal, retained| while journal.prune(retained).unwrap() {};
        let (from, oldest) = (all[all.len() / 2].1, all[0].1);
        prune(writer.journal, RetainedEvents { from: Some(oldest), max: end.0 });
        assert_eq!(read(writer.journal, Revision(0)).1, all, "all are young and few enough");
        prune(writer.journal, RetainedEvents { from: Some(from), max: u64::MAX });
        let (floor, _) = read(writer.journal, Revision(0));
        let young = all.iter().filter(|(_, at)| *at >= from).count() as u64;
        assert_eq!(floor, Revision(end.0 - young), "what is older has gone");
        assert_eq!(read(writer.journal, Revision(0)).1, [], "a reader that has missed events gets none");
        assert_eq!(read(writer.journal, floor).1, all[floor.0 as usize..]);
        prune(writer.journal, RetainedEvents { from: None, max: 100 });
        let (floor, _) = read(writer.journal, Revision(0));
        // A batch is removed as a whole.
        assert!(floor.0 >= end.0 - 1_000 && floor.0 > end.0 - young, "{floor} of {end}");
        prune(writer.journal, RetainedEvents::default());
        assert_eq!(read(writer.journal, Revision(0)), (end, Vec::new()));
        assert!(encoded(&recover(writer.journal)) == state, "the snapshot has it all");
        let next = writer.submit().unwrap();
        let (floor, rest) = read(writer.journal, end);
        assert_eq!((floor, rest.len() as u64), (end, next.0 - end.0));
        // What no snapshot covers stays, whatever is retained.
        prune(writer.journal, RetainedEvents::default());
        assert_eq!(read(writer.journal, end).1.len() as u64, next.0 - end.0);
    });
}
