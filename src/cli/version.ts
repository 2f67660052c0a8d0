// Our own version, from package.json: bundled in by esbuild, read by Node where the sources run unbuilt.
import manifest from '../../package.json' with { type: 'json' };

export const VERSION: string = manifest.version;
