//! XXH64: finds what a disk, a cable or a careless hand has changed. It is no defence against somebody who wants
//! two contents to look the same.
const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

/// Of data that comes in whole stripes of 32 bytes.
pub struct Hash {
    lanes: [u64; 4],
    bytes: u64,
}

impl Hash {
    pub fn new() -> Hash {
        Hash { lanes: [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)], bytes: 0 }
    }

    /// Bytes beyond the last whole stripe are left out: there must be none.
    pub fn update(&mut self, data: &[u8]) {
        let (words, _) = data.as_chunks::<8>();
        let (stripes, _) = words.as_chunks::<4>();
        let mut lanes = self.lanes;
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        self.lanes = lanes;
        self.bytes += data.len() as u64;
    }

    pub fn finish(&self) -> u64 {
        let [a, b, c, d] = self.lanes;
        let mut hash = if self.bytes >= 32 {
            let sum =
                a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
            self.lanes.iter().fold(sum, |hash, &lane| (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4))
        } else {
            P5
        };
        hash = hash.wrapping_add(self.bytes);
        hash = (hash ^ hash >> 33).wrapping_mul(P2);
        hash = (hash ^ hash >> 29).wrapping_mul(P3);
        hash ^ hash >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are another implementation's.
    #[test]
    fn it_is_xxh64() {
        assert_eq!(Hash::new().finish(), 0xEF46_DB37_51D8_E999);
        let mut zeros = Hash::new();
        zeros.update(&[0; 4096]);
        assert_eq!(zeros.finish(), 0xAC86_9B6F_32D8_BBDB);
        let mut counting = Hash::new();
        let bytes: Vec<u8> = (0..4096u32).map(|byte| byte as u8).collect();
        counting.update(&bytes[..1024]);
        counting.update(&bytes[1024..]);
        assert_eq!(counting.finish(), 0x0F6E_64BE_186A_F6A4);
    }
}
