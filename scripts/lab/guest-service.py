#!/usr/bin/env python3
"""Runs commands for the lab's owner, over a virtio-serial port: one JSON line per message, bytes in base64.

in:  {"id": n, "argv": [...], "env": {...}, "cwd": "/", "user": "root"} | {"id": n, "input": "…"} | {"id": n, "end": true} | {"id": n, "kill": true}
out: {"id": n, "fd": 1, "data": "…"} | {"id": n, "exit": code}
"""
import base64, json, os, pwd, signal, subprocess, sys, threading

PORT = "/dev/virtio-ports/hutch.lab"
port = open(PORT, "r+b", buffering=0)
lock = threading.Lock()
running = {}


def send(message):
    data = json.dumps(message).encode() + b"\n"
    with lock:
        while data:
            data = data[port.write(data):]


def pump(ident, fd, stream):
    while chunk := os.read(stream.fileno(), 32768):
        send({"id": ident, "fd": fd, "data": base64.b64encode(chunk).decode()})


def start(message):
    ident = message["id"]
    user = pwd.getpwnam(message.get("user", "root"))
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": user.pw_dir, "USER": user.pw_name, "LANG": "C.UTF-8"}
    if user.pw_uid and os.path.isdir(f"/run/user/{user.pw_uid}"):
        env["XDG_RUNTIME_DIR"] = f"/run/user/{user.pw_uid}"
    env.update(message.get("env", {}))
    try:
        child = subprocess.Popen(
            message["argv"], env=env, cwd=message.get("cwd", user.pw_dir), user=user.pw_uid, group=user.pw_gid,
            extra_groups=os.getgrouplist(user.pw_name, user.pw_gid) if user.pw_uid else None,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        send({"id": ident, "fd": 2, "data": base64.b64encode(f"{error}\n".encode()).decode()})
        send({"id": ident, "exit": 127})
        return
    running[ident] = child

    def wait():
        pumps = [threading.Thread(target=pump, args=(ident, fd, stream)) for fd, stream in ((1, child.stdout), (2, child.stderr))]
        for each in pumps:
            each.start()
        code = child.wait()
        # What a command left in the background may hold the pipes open: its output is waited for a moment only.
        for each in pumps:
            each.join(2)
        running.pop(ident, None)
        send({"id": ident, "exit": code if code >= 0 else 128 - code})

    threading.Thread(target=wait).start()


for line in iter(port.readline, None):
    if not line:
        threading.Event().wait(0.2)  # nobody is connected on the host's side
        continue
    try:
        message = json.loads(line)
    except ValueError:
        continue
    child = running.get(message.get("id"))
    if "argv" in message:
        start(message)
    elif child and "input" in message:
        child.stdin.write(base64.b64decode(message["input"]))
        child.stdin.flush()
    elif child and message.get("end"):
        child.stdin.close()
    elif child and message.get("kill"):
        os.killpg(child.pid, signal.SIGTERM)
    elif message.get("ping"):
        send({"pong": True})
