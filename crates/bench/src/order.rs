//! Which numbers of a sequence were heard: what is lost, what came twice, what came late.

/// A sequence of known length, and what was heard of it.
pub struct Order {
    first: u64,
    seen: Vec<u64>,
    count: u64,
    heard: u64,
    highest: Option<u64>,
    /// Heard once more than sent, or never sent.
    pub doubled: u64,
    /// Heard behind one with a higher number.
    pub disordered: u64,
}

impl Order {
    /// The numbers `first..first + count`.
    pub fn new(first: u64, count: u64) -> Order {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(usize::MAX);
        Order { first, seen: vec![0; words], count, heard: 0, highest: None, doubled: 0, disordered: 0 }
    }

    /// Takes note of a number; whether it is one that was waited for.
    pub fn hear(&mut self, number: u64) -> bool {
        let Some(place) = number.checked_sub(self.first).filter(|place| *place < self.count) else {
            self.doubled += 1;
            return false;
        };
        let (word, bit) = (&mut self.seen[(place / 64) as usize], 1 << (place % 64));
        if *word & bit != 0 {
            self.doubled += 1;
            return false;
        }
        *word |= bit;
        self.heard += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            self.disordered += 1;
        } else {
            self.highest = Some(number);
        }
        true
    }

    /// How many different ones were heard.
    pub fn heard(&self) -> u64 {
        self.heard
    }

    /// Whether all of them were.
    pub fn complete(&self) -> bool {
        self.heard == self.count
    }

    /// How many are missing of the first `sent` of them.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.min(self.count).saturating_sub(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: &[u64]) -> Order {
        let mut order = Order::new(100, 70);
        for number in numbers {
            order.hear(*number);
        }
        order
    }

    #[test]
    fn what_comes_whole_and_in_order_is_complete() {
        let order = after(&(100..170).collect::<Vec<u64>>());
        assert!(order.complete());
        assert_eq!((order.lost(70), order.doubled, order.disordered), (0, 0, 0));
    }

    #[test]
    fn lost_doubled_late_and_foreign_numbers_are_counted() {
        let order = after(&[100, 102, 101, 103, 103, 165, 99, 170]);
        assert_eq!(order.heard(), 5);
        assert_eq!(order.disordered, 1);
        assert_eq!(order.doubled, 3, "103 again, and two that were never sent");
        assert_eq!(order.lost(70), 65);
        assert_eq!(order.lost(6), 1, "of those that were sent");
        assert!(!order.complete());
    }
}
