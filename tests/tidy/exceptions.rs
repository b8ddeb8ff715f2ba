//! Where the rules do not hold yet. A number here may only fall: one that is higher than what is
//! found breaks the rule, as does an entry that is no longer needed.

/// What a look may call although it takes `&mut`, and why nothing a caller can see changes.
pub(crate) const LOOKS: &[(&str, &str)] = &[
    ("Dispatch::end_due", "what is over by the clock is over; whoever comes first notes it"),
    ("Dispatch::backlog_mut", "finding a place remembers where it was, and opens maps"),
    ("Dispatch::whereabouts_of", "as above"),
    ("Dispatch::ready", "moves what has become due by the clock to what is due"),
    ("Body::take", "the body is the caller's own"),
];
