//! Room for operators' intermediate results, from the global allocator.

/// Room for intermediate results.
pub(crate) struct Room(Vec<f32>);

impl Room {
    /// Room for so many numbers, if there is memory.
    pub(crate) fn new(len: usize) -> Option<Room> {
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(len).ok()?;
        numbers.resize(len, 0.0);
        Some(Room(numbers))
    }

    /// The numbers, of any value.
    pub(crate) fn numbers(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
