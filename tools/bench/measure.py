"""What a command takes: time, processor, memory, requests."""

import os
import socket
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")


def run(command, **more):
    """Runs what isn't measured, and returns what it says."""
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{command} has failed: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def processes_below(root):
    """The processes below one, itself included."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rsplit(") ", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry))
        except (OSError, IndexError):
            pass
    found, left = [], [root]
    while left:
        one = left.pop()
        found.append(one)
        left += children.get(one, [])
    return found


def resident(process):
    """KiB of a process, its share of what it has in common with others, so that nothing is counted twice."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def machine_cpu():
    """Seconds of all processors, but for what runs at a low priority."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return sum(int(fields[n]) for n in (1, 3, 6, 7)) / TICK


class Measured:
    """A run of a command. With `watch`, its memory is looked at all the while, which takes time of its own: so what is
    over in a moment is run once more for it."""

    def __init__(self, command, watch=True, **more):
        self.peak, self.stored, self.requests = 0, None, None
        before, begin = machine_cpu(), time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)
        said = []
        reader = threading.Thread(target=lambda: said.append(process.stderr.read()))
        reader.start()
        done, pause = 0, 0.001
        while watch and not done:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not done:
                self.peak = max(self.peak, sum(map(resident, processes_below(process.pid))) / 1024)
                time.sleep(pause)
                pause = min(pause * 1.1, 0.02)
        if not done:
            _, status, usage = os.wait4(process.pid, 0)
        self.wall = time.monotonic() - begin
        reader.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command} has failed: {said[0].decode()}")
        self.cpu = usage.ru_utime + usage.ru_stime
        self.machine = machine_cpu() - before


class S3:
    """The tests' S3 server, with TLS before it, and how much it was asked for."""

    def __init__(self, served, home, tools):
        server, self.bucket, self.key_id, self.secret = served
        self.certificate, key = f"{home}/server.crt", f"{home}/server.key"
        self.count_file = f"{home}/requests"
        with open(f"{home}/openssl.cnf", "w") as file:
            file.write("[req]\ndistinguished_name = name\nx509_extensions = more\nprompt = no\n[name]\nCN = localhost\n"
                       "[more]\nsubjectAltName = IP:127.0.0.1\nbasicConstraints = critical, CA:FALSE\n")
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "30", "-config", f"{home}/openssl.cnf", "-keyout", key, "-out", self.certificate])
        self.port = free_port()
        self.process = subprocess.Popen(
            ["/usr/bin/python3", f"{tools}/delay.py", str(self.port), server, "0", self.certificate, key, self.count_file],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: subprocess.run(["curl", "-sko", "/dev/null", f"https://127.0.0.1:{self.port}"]).returncode == 0,
                 "S3 listens")

    def asked(self):
        """How many requests so far."""
        try:
            with open(self.count_file) as file:
                return int(file.read() or 0)
        except FileNotFoundError:
            return 0

    def end(self):
        self.process.kill()
        self.process.wait()


def free_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def wait_for(is_so, what, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain: {what}")
        time.sleep(0.05)
