/** A program that gives back what it gets on a port of its loopback, by what the image has. */
export function echoServer(port: number): string[] {
  const python = `import socket
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1",${port})); s.listen(8)
while True:
  c,_=s.accept()
  while True:
    d=c.recv(65536)
    if not d: break
    c.sendall(d)
  c.close()`;
  return ['sh', '-c', `if command -v python3 >/dev/null; then exec python3 -c '${python}'; else exec nc -ll -p ${port} -e cat; fi`];
}

/** A program that says a word to whoever comes, and ends the connection at once. */
export function byeServer(port: number): string[] {
  const python = `import socket
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1",${port})); s.listen(8)
while True:
  c,_=s.accept()
  c.sendall(b"bye")
  c.close()`;
  return ['sh', '-c', `if command -v python3 >/dev/null; then exec python3 -c '${python}'; else exec nc -ll -p ${port} -e echo bye; fi`];
}
