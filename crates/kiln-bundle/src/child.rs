//! Other programs that end with this process, however it ends.

use std::io;
use std::process::{self, ChildStdin, Command, ExitStatus, Output};

use crate::partial::register;

/// A running program. It and what it starts end when this is dropped, when the process is interrupted
/// ([`crate::fs::abandon`]) and, on Linux, when the process or the thread that started it is killed.
#[derive(Debug)]
pub struct Child {
    /// None once it is waited for.
    child: Option<process::Child>,
    id: u32,
}

impl Child {
    /// Starts a program in a process group of its own.
    pub fn spawn(command: &mut Command) -> io::Result<Child> {
        bind(command);
        let mut register = register();
        let child = command.spawn()?;
        let id = child.id();
        register.groups.insert(id);
        Ok(Child { child: Some(child), id })
    }

    /// The other end of its standard input, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.as_mut()?.stdin.take()
    }

    /// How it ended, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut register = register();
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            register.groups.remove(&self.id);
            self.child = None;
        }
        Ok(status)
    }

    /// Waits for its end, and what it said where that is piped.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        let child = self.child.take().ok_or(io::ErrorKind::NotFound)?;
        let output = child.wait_with_output();
        register().groups.remove(&self.id);
        output
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut register = register();
        if let Some(child) = &mut self.child {
            end(self.id);
            if !cfg!(unix) {
                let _ = child.kill().and_then(|()| child.wait());
            }
        }
        register.groups.remove(&self.id);
    }
}

/// Kills the processes of a child's group, and waits until the child is gone.
#[cfg(unix)]
pub(crate) fn end(group: u32) {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
    if let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
        // Another thread may have waited for it before.
        let _ = waitpid(Some(group), WaitOptions::empty());
    }
}

#[cfg(not(unix))]
pub(crate) fn end(_group: u32) {}

#[cfg(unix)]
fn bind(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(target_os = "linux")]
    end_with_parent(command);
}

#[cfg(not(unix))]
fn bind(_command: &mut Command) {}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "it has to be said in the child, before it runs the program")]
fn end_with_parent(command: &mut Command) {
    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
    let parent = getpid();
    let tell = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        match getppid() == Some(parent) {
            true => Ok(()),
            // The parent has ended meanwhile.
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor locks.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, tell) };
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    #[track_caller]
    fn is_gone(pid: &str) {
        let start = Instant::now();
        while Path::new("/proc").join(pid).join("exe").exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "{pid} still runs");
            sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_dropped_child_started_ends_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "sleep 60 & echo $! >pid.new; mv pid.new pid; wait";
        let child = Child::spawn(Command::new("sh").args(["-c", script]).current_dir(folder.path()));
        let child = child.expect("a shell");
        let pid = folder.path().join("pid");
        while !pid.exists() {
            sleep(Duration::from_millis(5));
        }
        drop(child);
        is_gone(fs::read_to_string(pid).expect("a number").trim());
    }
}
