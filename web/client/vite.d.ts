// A Vite plugin for apps behind Cloakroom.
import type { Plugin } from "vite";

export interface CloakroomViteOptions {
  /** Where the broker listens. Default: http://localhost:8080. Its `server.public_url` is the URL of Vite. */
  broker?: string;
  /** The paths of the broker's routes. Default: `/api/`. */
  routes?: string[];
  /** Prefix of the broker's endpoints. Default: `/bff`. */
  prefix?: string;
  /** Write `.br` and `.gz` files beside those of the build. Default: true. */
  compress?: boolean;
}

/**
 * Proxies the broker's paths in `vite dev` and `vite preview`. After a build it
 * compresses the files and prints what they need in `frontend.csp`.
 */
export declare function cloakroom(options?: CloakroomViteOptions): Plugin;

/** For vite-plugin-pwa: `workbox: { navigateFallbackDenylist }`. Sign-in needs the network. */
export declare const navigateFallbackDenylist: RegExp[];
