//! Random choices that a run can make again.

/// A source of random numbers (xorshift), good enough to choose with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Another one each time, unless `PGKEEP_TEST_SEED` says which. Prints the seed.
    pub fn of_this_run() -> Self {
        let seed = match std::env::var("PGKEEP_TEST_SEED") {
            Ok(seed) => seed.parse().expect("PGKEEP_TEST_SEED is a number"),
            Err(_) => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).expect("random bytes");
                u64::from_le_bytes(bytes)
            }
        };
        eprintln!("the order is that of PGKEEP_TEST_SEED={seed}");
        Random(seed | 1)
    }

    /// The one that this seed makes.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random((seed << 1) | 1);
        // The first numbers of small seeds are small.
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
