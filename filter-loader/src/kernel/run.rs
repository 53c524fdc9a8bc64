//! Programs that run when we say so.

use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use filter_common::layout::{FLOW_SHARDS, sweep};

use super::{KernelError, program};

/// Runs programs through `BPF_PROG_TEST_RUN`.
pub struct Runner {
    sweep: SchedClassifier,
    inject: SchedClassifier,
    mark: u32,
}

/// `struct __sk_buff` as far as a caller may set it: the mark, and five control fields.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L6179-L6224>
const CONTEXT_LEN: usize = 192;
const MARK_OFFSET: usize = 8;
const CONTROL_OFFSET: usize = 48;

/// `BPF_F_INGRESS`: as if the frame had come in.
const INGRESS: u32 = 1;

/// Which way an injected frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Towards {
    /// The sandbox.
    Sandbox,
    /// The host, as if the sandbox had sent it.
    Host,
    /// The inspector, as if the sandbox had sent it.
    Inspector,
}

impl Runner {
    pub(super) const fn new(sweep: SchedClassifier, inject: SchedClassifier, mark: u32) -> Self {
        Self { sweep, inject, mark }
    }

    /// Starts the timer that ends idle connections; if it runs already, has it call this daemon's program.
    ///
    /// # Errors
    /// If the kernel has no memory for it, for as long as one can wait.
    pub(super) fn start_expiry(&self) -> Result<(), KernelError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const STEP: Duration = Duration::from_millis(10);
        let begun = Instant::now();
        while self.sweep([sweep::START, 0, 0, 0, 0])? != sweep::DONE {
            if begun.elapsed() > PATIENCE {
                return Err(KernelError::System {
                    what: "starting the timer that ends idle connections",
                    source: std::io::ErrorKind::OutOfMemory.into(),
                });
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Judges the connections of a sandbox again, under the policy in force. `false`: there was no more
    /// room in the ring of cuts, so empty it and call again.
    ///
    /// # Errors
    /// If the kernel refuses to run the program.
    pub fn rejudge(&self, tenant: u32, slot: u32, ifindex: u32) -> Result<bool, KernelError> {
        for shard in 0..FLOW_SHARDS {
            if self.sweep([sweep::REJUDGE, shard, tenant, slot, ifindex])? != sweep::DONE {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets all connections of a sandbox.
    ///
    /// # Errors
    /// If the kernel refuses to run the program.
    pub fn forget(&self, tenant: u32, slot: u32) -> Result<(), KernelError> {
        for shard in 0..FLOW_SHARDS {
            self.sweep([sweep::FORGET, shard, tenant, slot, 0])?;
        }
        Ok(())
    }

    /// Puts a frame onto an interface.
    ///
    /// # Errors
    /// If the kernel refuses to run the program; a frame that does not get through is not noticed.
    pub fn inject(&self, frame: &[u8], ifindex: u32, towards: Towards) -> Result<(), KernelError> {
        let (flags, mark) = match towards {
            Towards::Sandbox => (0, self.mark),
            Towards::Host => (INGRESS, self.mark),
            Towards::Inspector => (INGRESS, self.mark | 1),
        };
        let context = context(mark, [ifindex, flags, 0, 0, 0]);
        run(&self.inject, "inject", frame, &context).map(drop)
    }

    fn sweep(&self, control: [u32; 5]) -> Result<u32, KernelError> {
        // The program does not look at the frame; the kernel wants one.
        run(&self.sweep, "sweep", &[0; 64], &context(0, control))
    }
}

fn context(mark: u32, control: [u32; 5]) -> [u8; CONTEXT_LEN] {
    let mut context = [0; CONTEXT_LEN];
    context[MARK_OFFSET..MARK_OFFSET + 4].copy_from_slice(&mark.to_ne_bytes());
    for (place, value) in context[CONTROL_OFFSET..].chunks_exact_mut(4).zip(control) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    context
}

fn run(
    classifier: &SchedClassifier,
    name: &'static str,
    frame: &[u8],
    context: &[u8],
) -> Result<u32, KernelError> {
    let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(context), ..TestRunOptions::new() };
    let result = classifier.test_run(options).map_err(program(name))?;
    Ok(result.return_value)
}
