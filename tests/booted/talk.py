# SPDX-License-Identifier: BSD-3-Clause
"""One MPTCP connection within a booted system: `talk.py CLIENT SERVER`; each answer is a byte in
/root/answers, and /root/broken says that there was none."""

import socket
import sys
import threading
import time

client_ip, server_ip = sys.argv[1:]
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
listener.bind((server_ip, 5000))
listener.listen()


def echo() -> None:
    accepted, _ = listener.accept()
    while data := accepted.recv(4096):
        accepted.sendall(data)


threading.Thread(target=echo, daemon=True).start()
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
client.bind((client_ip, 0))
client.connect((server_ip, 5000))
client.settimeout(10)
with open("/root/answers", "wb", buffering=0) as answers:
    try:
        while True:
            client.sendall(b"x")
            answers.write(client.recv(1))
            time.sleep(0.01)
    except OSError as error:
        with open("/root/broken", "w") as broken:
            broken.write(str(error))
