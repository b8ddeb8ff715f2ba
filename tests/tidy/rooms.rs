//! The table of rooms: the one place where layers stand.
//!
//! A line is a rank, the top one first; the rooms on it are separated by spaces. A room is a path
//! below `src` without its ending: it holds that file and all in the folder of that name
//! (`queue` holds `queue.rs` and `queue/pop.rs`; `engine/mod` holds `engine/mod.rs` alone). A file
//! belongs to the longest room that holds it. It uses its own rank and lower ones.
//!
//! `src/docs/design.md` shows the same, in its first block of this form:
//!
//! ````text
//! ```text
//! lib
//! queue  typed  peeked         -- what a user holds
//! delivery
//! ```
//! ````
//!
//! A line for each rank, rooms separated by spaces, indented as one likes; what follows `--` is a
//! remark; lines without a room do not count.

/// From the top down.
pub(crate) const ROOMS: &[&str] = &[
    "lib",
    "queue typed peeked",
    "delivery",
    "open_queue",
    "dead_letters",
    "engine/mod engine/futures engine/interleavings",
    "engine/producers",
    "engine/consumers engine/inspect engine/letters",
    "engine/reclaim",
    "engine/commit",
    "engine/append",
    "engine/signal",
    "engine/dispatch",
    "engine/backlog",
    "engine/context engine/published engine/settled_total engine/opening",
    "engine/health engine/worker engine/waiters",
    "engine/space engine/line engine/gate engine/wait engine/crew",
    "recovery compaction",
    "log checkpoint leases schedule",
    "options message backoff stats stuck report",
    "io",
    "format",
    "error seq clock time distribution ranges random",
];

/// Rooms of plain data: their structs may have fields that other files see, although they have
/// methods, as long as none takes `&mut self` and none of their fields is a lock.
pub(crate) const PLAIN: &[&str] = &[
    "format",
    "error",
    "seq",
    "clock",
    "time",
    "backoff",
    "distribution",
    "ranges",
    "options",
    "message",
    "stats",
    "stuck",
    "report",
    "leases",
    "schedule",
    "checkpoint",
    "log",
    "io",
    "recovery",
    "compaction",
    "engine/context",
    "engine/waiters",
    "engine/opening",
    "engine/append",
    "engine/dispatch/policy",
    "engine/dispatch/news",
    "engine/dispatch/exchange",
];

/// Rooms of figures, which have a method for each.
pub(crate) const FIGURES: &[&str] = &["stats"];

/// Rooms that may have locks.
pub(crate) const LOCKING: &[&str] =
    &["engine", "io", "open_queue", "dead_letters", "log/waypoints", "log/regions"];

/// Rooms and files without locks, files and clocks, so that they can be tested to the last case.
pub(crate) const PURE: &[&str] = &["format", "leases", "schedule", "compaction/plan"];

/// A table of rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rooms(Vec<Vec<String>>);

impl Rooms {
    pub(crate) fn new(ranks: &[&str]) -> Self {
        let rooms = |rank: &&str| rank.split_whitespace().map(str::to_string).collect();
        Self(ranks.iter().map(rooms).collect())
    }

    /// The room of a file below `src`, and its rank: 0 is at the top.
    pub(crate) fn of(&self, file: &str) -> Option<(&str, usize)> {
        let ranked = self.0.iter().enumerate();
        let all = ranked.flat_map(|(rank, rooms)| rooms.iter().map(move |room| (&**room, rank)));
        all.filter(|(room, _)| is_in(file, room)).max_by_key(|(room, _)| room.len())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flatten().map(String::as_str)
    }

    /// Reads the drawing of `design.md`: the first block that begins with the top room.
    pub(crate) fn drawn_in(page: &str) -> Option<Self> {
        let blocks = page.split("```text\n").skip(1);
        let mut tables = blocks.map(|block| Self::from_drawing(block.split("```").next().unwrap()));
        tables.find(|table| table.0.first().is_some_and(|top| top[0] == "lib"))
    }

    fn from_drawing(drawing: &str) -> Self {
        let rooms = |line: &str| -> Vec<String> {
            let rooms = line.split("--").next().unwrap().split_whitespace();
            rooms.map(str::to_string).collect()
        };
        Self(drawing.lines().map(rooms).filter(|rooms| !rooms.is_empty()).collect())
    }

    /// In the form in which `design.md` has it.
    pub(crate) fn drawing(&self) -> String {
        let lines: Vec<String> = self.0.iter().map(|rooms| rooms.join("  ")).collect();
        format!("```text\n{}\n```", lines.join("\n"))
    }
}

/// Whether a file below `src` belongs to the room or folder `room`.
pub(crate) fn is_in(file: &str, room: &str) -> bool {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(crate) fn is_in_any(file: &str, rooms: &[&str]) -> bool {
    rooms.iter().any(|room| is_in(file, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_longest_room_that_holds_it() {
        let rooms = Rooms::new(&["lib", "queue", "engine/mod", "engine", "engine/append"]);
        assert_eq!(rooms.of("lib.rs"), Some(("lib", 0)));
        assert_eq!(rooms.of("queue.rs"), Some(("queue", 1)));
        assert_eq!(rooms.of("queue/pop.rs"), Some(("queue", 1)));
        assert_eq!(rooms.of("queues.rs"), None);
        assert_eq!(rooms.of("engine/mod.rs"), Some(("engine/mod", 2)));
        assert_eq!(rooms.of("engine/line.rs"), Some(("engine", 3)));
        assert_eq!(rooms.of("engine/append/mod.rs"), Some(("engine/append", 4)));
        assert_eq!(rooms.of("engine/append/room.rs"), Some(("engine/append", 4)));
        assert_eq!(rooms.of("engine/appended.rs"), Some(("engine", 3)));
    }

    #[test]
    fn a_drawing_is_read_as_it_is_written() {
        let rooms = Rooms::new(&["lib", "queue typed", "engine/mod", "engine"]);
        let page = format!("# Design\n\n```text\nother\n```\n\n{}\n", rooms.drawing());
        assert_eq!(Rooms::drawn_in(&page), Some(rooms));
        let page =
            "```text\n   lib\n\n  a  b   -- what a user holds\n       -- a remark\n  c\n```\n";
        assert_eq!(Rooms::drawn_in(page), Some(Rooms::new(&["lib", "a b", "c"])));
        assert_eq!(Rooms::drawn_in("```text\nqueue\n```\n"), None);
    }
}
