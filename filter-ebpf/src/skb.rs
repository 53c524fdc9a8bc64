//! The socket buffer: its fields, and its bytes for the parsers.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes, programs::TcContext};
use filter_common::read::Read;

/// A socket buffer at TC, where its data starts with the Ethernet header.
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// Bytes of the frame, Ethernet header included.
    #[inline(always)]
    pub fn frame_len(&self) -> u32 {
        // SAFETY: the kernel hands every program a valid context.
        unsafe { (*self.raw).len }
    }

    /// The interface that the packet is at.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ifindex }
    }

    /// The interface that it came in by; 0 if the host itself made it.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ingress_ifindex }
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).mark }
    }

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: as above.
        unsafe { (*self.raw).mark = mark };
    }

    /// Whether a VLAN tag was taken off the frame into the buffer's metadata.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    /// The control fields, which userspace sets when it runs a program itself.
    #[inline(always)]
    pub fn control(&self, index: usize) -> u32 {
        // SAFETY: as above; callers pass constants below 5.
        unsafe { (*self.raw).cb[index] }
    }
}

impl Read for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.frame_len()
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        // Only the first bytes of a frame have to lie in the buffer's linear part.
        self.near(offset).or_else(|| self.words_at(offset))
    }

    #[inline(always)]
    fn near<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        // SAFETY: the context's data pointers are valid, and the verifier checks the comparison.
        // The pointer may be unaligned, which the JITs of 64-bit machines allow; `read_unaligned` would
        // turn each word into four loads.
        unsafe {
            let start = (*self.raw).data as usize + offset as usize;
            let end = (*self.raw).data_end as usize;
            if start + 4 * N > end {
                return None;
            }
            let start = start as *const u32;
            let mut words = [0; N];
            let mut index = 0;
            while index < N {
                words[index] = *start.add(index);
                index += 1;
            }
            Some(words)
        }
    }

    #[inline(always)]
    fn words_at<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0_u32; N];
        // SAFETY: the buffer is ours and as long as we say.
        let failed =
            unsafe { bpf_skb_load_bytes(self.raw.cast(), offset, words.as_mut_ptr().cast(), 4 * N as u32) };
        if failed == 0 { Some(words) } else { None }
    }
}
