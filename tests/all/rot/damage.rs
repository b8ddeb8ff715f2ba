//! Which bytes go bad.

use super::{At, Case, Known};
use crate::found_hooks::{files, is_segment};
use crate::support::reader::{self, Place};
use keepq::fault::Storage;

/// The last bytes of a state and of a delay have nothing but the check, whose few bits some damage
/// of other bytes would pass.
const STATE_CHECK: u64 = 6;
const DELAY_CHECK: u64 = 7;

impl Case {
    /// Damages one or two bytes of a message, in one of the segments that have it.
    pub(super) fn damage(&mut self) {
        if !self.dice.one_in(self.damage_one_in) {
            return;
        }
        let Some(message) = self.sound_message() else { return };
        let places = self.places(message);
        if places.is_empty() {
            return;
        }
        let (name, place) = &places[self.dice.below(places.len() as u64) as usize];
        self.messages[message].is_excused = true;
        for _ in 0..=self.dice.below(2) {
            let (part, offset) = self.part(place);
            let mask = 1 + self.dice.below(255) as u8;
            self.note(format!("damage the {part} of {message} in {name} at {offset} by {mask}"));
            let file = self.disk.open(name).unwrap();
            let mut byte = [0];
            file.read_at(offset, &mut byte).unwrap();
            file.write_at(offset, &[byte[0] ^ mask]).unwrap();
        }
    }

    /// A message that has no damage yet; often one that is not settled.
    fn sound_message(&mut self) -> Option<usize> {
        let with_settled = self.dice.one_in(2);
        let may_be = |known: &Known| !known.is_excused && (with_settled || known.at != At::Settled);
        let messages = self.messages.iter().enumerate();
        let sound: Vec<usize> =
            messages.filter(|(_, known)| may_be(known)).map(|(message, _)| message).collect();
        let chosen = self.dice.below(sound.len().max(1) as u64) as usize;
        sound.get(chosen).copied()
    }

    /// The segments that have a message, and where they have it.
    fn places(&self, message: usize) -> Vec<(String, Place)> {
        let payload = self.payload(message);
        let place = |name: String| {
            let place = reader::place(&self.disk.read(&name)?, &payload)?;
            Some((name, place))
        };
        let names = files(&self.disk).into_iter();
        let names = names.filter(|name| is_segment(name) && !name.starts_with("dead/"));
        names.filter_map(place).collect()
    }

    /// A part of a message, and the offset of a byte of it.
    fn part(&mut self, place: &Place) -> (&'static str, u64) {
        match self.dice.below(4) {
            0 => ("header", place.header + self.dice.below(24)),
            1 => ("state", place.slot + STATE_CHECK + self.dice.below(8 - STATE_CHECK)),
            2 => ("delay", place.slot + 8 + DELAY_CHECK + self.dice.below(8 - DELAY_CHECK)),
            _ => ("body", place.header + 24 + self.dice.below(place.body_len)),
        }
    }
}
