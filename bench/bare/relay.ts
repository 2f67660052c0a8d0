// What a person would write: a server that pipes each connection to another address. A process of its own, as the daemon is;
// says at which port it answers.
import { type AddressInfo, connect, createServer } from 'node:net';

const [host = '127.0.0.1', port = '0'] = process.argv.slice(2);
const server = createServer({ noDelay: true, allowHalfOpen: true }, (peer) => {
  const inside = connect({ host, port: Number(port), noDelay: true, allowHalfOpen: true });
  peer.pipe(inside).pipe(peer);
  for (const socket of [peer, inside]) {
    socket.on('error', () => {
      peer.destroy();
      inside.destroy();
    });
  }
});
server.listen(0, '127.0.0.1', () => process.stdout.write(`${(server.address() as AddressInfo).port}\n`));
