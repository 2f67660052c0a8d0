// Node's modules that take a while to load, each of which comes when something of it is used.
import type { Plugin } from 'esbuild';

/**
 * `http` as a module begins by looking at each of its names, and one of them is a WebSocket that is made when it is looked at: that
 * loads an HTTP client of a megabyte, which took a fifth of a daemon's start. TLS reads the certificates of all authorities in that way.
 */
export const OF_DAEMON = /^(?:node:)?(?:http|https|tls)$/;

/** `filter`: which modules. Who loads one by a dynamic import uses it at once. */
export function lateModules(filter: RegExp): Plugin {
  return {
    name: 'late-modules',
    setup({ onResolve, onLoad }) {
      onResolve({ filter }, ({ path, kind }) => (kind === 'dynamic-import' ? undefined : { path, namespace: 'late-module' }));
      onLoad({ filter: /^/, namespace: 'late-module' }, ({ path }) => {
        const names = Object.keys(process.getBuiltinModule(path) ?? {});
        const getters = names.map((name) => `get ${name}() { return process.getBuiltinModule('${path}').${name}; }`);
        return { contents: `module.exports = { ${getters.join(', ')} };` };
      });
    },
  };
}
