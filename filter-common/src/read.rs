//! How the parsers get at bytes, wherever they lie.

/// A frame, from its first Ethernet byte. The kernel side reads a socket buffer, tests read a slice.
///
/// Values come back as they lie in memory (network byte order for protocol fields), because most are
/// only compared or passed on.
#[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
pub trait Read {
    /// Bytes in the frame, Ethernet header included.
    fn len(&self) -> u32;

    /// `N` four-byte words from `offset`, which the caller knows when it is compiled; `None` past the end.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// As [`Self::words`], but `None` also where they are not at hand: never slow.
    fn near<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// As [`Self::words`], for an offset that the packet itself decides.
    fn words_at<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
}

/// The byte at `index` (0..4) of a word read from a packet.
#[inline(always)]
pub const fn byte(word: u32, index: usize) -> u8 {
    word.to_ne_bytes()[index]
}

/// The first two bytes of a word, as they lie in the packet.
#[inline(always)]
pub const fn first_half(word: u32) -> u16 {
    let bytes = word.to_ne_bytes();
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

/// The last two bytes of a word, as they lie in the packet.
#[inline(always)]
pub const fn second_half(word: u32) -> u16 {
    let bytes = word.to_ne_bytes();
    u16::from_ne_bytes([bytes[2], bytes[3]])
}

/// A frame in a slice.
#[cfg(any(test, feature = "std"))]
impl Read for &[u8] {
    fn len(&self) -> u32 {
        u32::try_from((**self).len()).unwrap_or(u32::MAX)
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(4 * N)?)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(chunk.try_into().ok()?);
        }
        Some(words)
    }

    fn near<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.words(offset)
    }

    fn words_at<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.words(offset)
    }
}
