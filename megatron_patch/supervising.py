"""Run a command, with an eye on the processes that the patches do not reach (`watching`)."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence

from .watching import Watch

#: Numbers of what Linux's prctl() does, by its header.
_SET_DEATH_SIGNAL = 1

#: Those that a fault of the process itself raises, which cannot wait.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}


def say(text: str) -> None:
    """A line on stderr, past Python's buffers, which two processes would share."""
    try:
        os.write(2, f"megatron-patch run: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return  # stderr is closed: there is nobody to tell


def become(program: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Execute the program in this process. Returns only if it cannot start: with 126."""
    # Python ignores these two, and a program that is executed would go on doing so.
    for name in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    try:
        os.execve(program, list(command), dict(environment))
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return 126


def watch_from_aside(mark: str) -> None:
    """Have a process of its own watch this one, and what it starts, until this one ends.

    It is nobody's child, in a session of its own and with no file of ours but stderr: the command
    that this process becomes does not meet it. It needs ``pidfd_open`` of Linux 5.3, and without
    that there is none.
    """
    me = os.getpid()
    try:
        end = os.pidfd_open(me)
    except (AttributeError, OSError):
        return
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        os.close(end)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _watch(Watch(me, mark, say), end)
    finally:
        os._exit(0)


def _watch(watch: Watch, end: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # who reads what the command writes is not to wait for us
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != end:
            os.closerange(number, number + 1)  # which takes one that is closed already
    os.chdir("/")
    poll = select.poll()
    poll.register(end, select.POLLIN)
    while not poll.poll(max(0.0, watch.next_look - time.monotonic()) * 1000):
        watch.look()
    watch.look(is_last=True)


def supervise(
    program: str, command: Sequence[str], environment: Mapping[str, str], mark: str
) -> int:
    """Run the program as a child; returns its exit status, or 1 when it is 0 and some process of
    it ran unpatched, or that could not be found out.

    A signal that ends the child ends this process, too. Other processes' signals are passed on;
    those of the terminal reach the child as well as this process. When this process is killed, so
    is the child, and when the child stops, this process does.
    """
    before = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    waited = signal.valid_signals() - _FAULTS - {signal.SIGKILL, signal.SIGSTOP}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _end_with(parent)
            signal.signal(signal.SIGCHLD, before)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os._exit(become(program, command, environment))
        finally:
            os._exit(126)
    watch = Watch(child, mark, say)
    status = None
    while status is None:
        info = signal.sigtimedwait(waited, max(0.0, watch.next_look - time.monotonic()))
        if info is None:
            watch.look()
        elif info.si_signo == signal.SIGCHLD:
            status = _ended(child)
        elif info.si_code <= 0:  # a process sent it; the terminal's go to the child, too
            os.kill(child, info.si_signo)
    watch.look(is_last=True)
    if watch.found:
        number = f"{watch.found} process{'es' * (watch.found > 1)}"
        say(f"{number} ran without the patches, which --strict forbids")
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
        return 128 + os.WTERMSIG(status)  # the first process of a container does not die of it
    return os.WEXITSTATUS(status) or int(watch.found > 0 or watch.is_blind)


def _ended(child: int) -> int | None:
    """The status of the child if it has ended. Stops with it where it has been stopped."""
    while True:
        # All children: to the first process of a container come those that nobody waits for.
        number, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if number == 0:
            return None
        if number != child:
            continue
        if not os.WIFSTOPPED(status):
            return status
        os.kill(os.getpid(), signal.SIGSTOP)


def _end_with(parent: int) -> None:
    """Have this process killed when its parent is."""
    try:
        import ctypes
    except ImportError:
        return  # a Python that was built without it
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # the parent was killed before that call
        os._exit(128 + signal.SIGKILL)


def _end_by(number: int) -> None:
    """End by a signal, as the child did, and without a second core."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
