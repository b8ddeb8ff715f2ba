//! Segments whose files somebody removed while the queue is open.
//!
//! Promises: what they held is told as damage, once, and holds up nothing else. Relies on the
//! caller to know that the directory itself is there.

use super::ledger::Ledger;
use super::news::Event;
use crate::format::address::Ordinal;
use crate::report::{Damage, DamageKind};

/// Gives a segment up whose file is gone; tells how many bytes it took.
pub(crate) fn give_up_vanished(ledger: &mut Ledger, ordinal: Ordinal) -> u64 {
    let published = ledger.newest();
    let Some(track) = ledger.backlog_mut().tracks_mut().remove(ordinal) else { return 0 };
    let seqs = track.first_seq()..track.end_seq(published);
    if !seqs.is_empty() {
        let (first, last) = (seqs.start, seqs.end - 1);
        let (path, unsettled) = (track.segment().path.clone(), track.unsettled(published));
        let damage = Damage { first, last, path, offset: 0, kind: DamageKind::Segment };
        ledger.backlog_mut().losses_mut().lose_segment(ordinal, unsettled, damage);
        ledger.places_mut().forget(&seqs);
        ledger.settled_total().add(unsettled);
        // Who waits for room, or for one of them, looks again.
        ledger.news_mut().note(Event::Room);
        ledger.news_mut().note(Event::SettledUnknown);
        ledger.note_head_changed();
    }
    track.size()
}
