//! Bytes that nobody meant, for tests: random ones, and good ones that were damaged; the same for the same seed.

/// A source of such bytes.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed | 1)
    }

    /// The next number (xorshift64*).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.next() as u8).collect()
    }

    /// One of the seeds, whole or damaged, or nothing of the kind.
    pub(crate) fn like_one_of(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        match self.below(6) {
            0 => self.bytes(64),
            1 => bytes,
            2 => {
                bytes.truncate(self.below(bytes.len() + 1));
                bytes
            }
            3 => [bytes, self.bytes(8)].concat(),
            4 => {
                // The first byte is often a version: what is behind it is more telling.
                let at = 1.min(bytes.len());
                bytes.splice(at.., self.bytes(64));
                bytes
            }
            _ => {
                for _ in 0..=self.below(4) {
                    let at = self.below(bytes.len());
                    bytes[at] = self.next() as u8;
                }
                bytes
            }
        }
    }
}
