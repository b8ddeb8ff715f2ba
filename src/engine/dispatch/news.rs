//! What changed under the dispatch lock that others have to be told of: the guard does that.

/// What changed since the lock was taken.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct News {
    /// Messages were settled: there is room for others.
    pub(crate) settled: bool,
    /// Their Seqs, as far as threads wait for any.
    pub(crate) settled_seqs: Vec<u64>,
    /// Messages were settled whose Seqs are not known.
    pub(crate) settled_unknown: bool,
    /// Segments may have become free: there is upkeep.
    pub(crate) upkeep: bool,
    /// Messages are on their way to the dead letters.
    pub(crate) died: bool,
    /// There may be something to compact.
    pub(crate) reclaims: bool,
    /// There may be something to hand out that was not, or room for one more in flight.
    pub(crate) returned: bool,
}

impl News {
    /// Whether nobody has to be told: messages may have been settled, if no producer waits.
    #[inline]
    pub(super) fn is_quiet(&self, has_producers: bool) -> bool {
        let tells = self.upkeep || self.died || self.reclaims || self.returned;
        let tells_waiters = self.settled_unknown || !self.settled_seqs.is_empty();
        let tells_producers = self.settled && has_producers;
        !(tells || tells_waiters || tells_producers)
    }
}
