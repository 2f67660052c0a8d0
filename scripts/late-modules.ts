// Node's modules that take a while to load, for a bundle in the form of modules.
//
// `http` as a module begins by looking at each of its names, and one of them is a WebSocket that is made when it is looked at: that
// loads an HTTP client of a megabyte, which took a fifth of a daemon's start. TLS reads the certificates of all authorities in that way.
import type { Plugin } from 'esbuild';

const LATE = /^(?:node:)?(?:http|https|tls)$/;

/** Each comes when something of it is used. */
export const lateModules: Plugin = {
  name: 'late-modules',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: LATE }, ({ path, kind }) => (kind === 'dynamic-import' ? undefined : { path, namespace: 'late-module' }));
    onLoad({ filter: /^/, namespace: 'late-module' }, ({ path }) => {
      const names = Object.keys(process.getBuiltinModule(path) ?? {});
      const getters = names.map((name) => `get ${name}() { return process.getBuiltinModule('${path}').${name}; }`);
      return { contents: `module.exports = { ${getters.join(', ')} };` };
    });
  },
};
