// A Vite plugin for apps behind Cloakroom. See vite.d.ts.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { brotliCompress, gzip } from "node:zlib";

const compressible = /\.(html|js|mjs|css|svg|json|txt|xml|wasm|webmanifest|map)$/;

/** @type {typeof import("./vite.d.ts").navigateFallbackDenylist} */
export const navigateFallbackDenylist = [/^(\/[^?]*)?\/bff\//];

/** @type {typeof import("./vite.d.ts").cloakroom} */
export function cloakroom({ broker = "http://localhost:8080", routes = ["/api/"], prefix = "/bff", compress = true, ...unknown } = {}) {
  for (const name of Object.keys(unknown)) throw new TypeError(`cloakroom(): unknown option ${name}; there are broker, routes, prefix and compress`);
  for (const path of [prefix, ...routes]) if (!path.startsWith("/")) throw new TypeError(`cloakroom(): the path ${path} does not begin with a slash`);
  // The broker sees the Host of the browser: that of public_url.
  const rule = { target: broker, changeOrigin: false, ws: true };
  const proxy = Object.fromEntries([`${prefix}/`, ...routes].map((path) => [`^${escape(path)}`, rule]));
  /** @type {import("vite").ResolvedConfig} */
  let config;
  return {
    name: "cloakroom",
    config: () => ({ server: { proxy }, preview: { proxy } }),
    configResolved(resolved) {
      config = resolved;
      // Vite takes the first rule that fits, and those of the app come first.
      for (const rule of Object.keys(config.server.proxy ?? {}).filter((rule) => !proxy[rule])) {
        const hidden = [`${prefix}/`, ...routes].find((path) => (rule.startsWith("^") ? RegExp(rule).test(path) : path.startsWith(rule)));
        if (hidden) config.logger.warn(`cloakroom: server.proxy has a rule for ${rule}, so requests to ${hidden} do not reach the broker: remove that rule`);
      }
    },
    closeBundle: {
      order: "post",
      sequential: true,
      async handler() {
        if (config.command !== "build" || config.build.ssr) return;
        const dir = resolve(config.root, config.build.outDir);
        // A build that failed may have no output. Vite reports why.
        const names = await readdir(dir, { recursive: true }).catch((err) => (err.code === "ENOENT" ? [] : Promise.reject(err)));
        const files = names.filter((name) => compressible.test(name)).map((name) => join(dir, name));
        for (const line of await findings(files, `${prefix}/`)) config.logger.info(`cloakroom: ${line}`);
        if (compress) for (const file of files) await compressFile(file);
      },
    },
  };
}

const escape = (/** @type {string} */ text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/**
 * Writes a file's .br and .gz siblings if they are smaller.
 *
 * @param {string} file
 */
async function compressFile(file) {
  const content = await readFile(file);
  if (content.length < 1024) return;
  for (const [suffix, run] of /** @type {const} */ ([[".br", promisify(brotliCompress)], [".gz", promisify(gzip)]])) {
    const small = await run(content);
    if (small.length < content.length) await writeFile(file + suffix, small);
  }
}

/**
 * Returns what the build needs beyond the broker's default policy, and what its
 * service worker breaks.
 *
 * @param {string[]} files
 * @param {string} prefix
 */
async function findings(files, prefix) {
  /** @type {Record<string, Set<string>>} */
  const csp = {};
  const add = (/** @type {string} */ directive, /** @type {string} */ source) => (csp[directive] ??= new Set()).add(source);
  // What is no URL, such as https://%HOST%/, is a text that the app completes.
  const addOrigin = (/** @type {string} */ directive, /** @type {string} */ url) => URL.canParse(url) && add(directive, new URL(url).origin);
  const lines = [];
  for (const file of files) {
    if (!/\.(html|css|m?js)$/.test(file)) continue;
    const text = await readFile(file, "utf8");
    if (file.endsWith(".html")) {
      for (const [, tag = "", url = ""] of text.matchAll(/<(script|link|img)\b[^>]*?\s(?:src|href)=["']?(https?:\/\/[^"'\s>]+)/gi)) {
        addOrigin({ script: "script-src", link: "style-src", img: "img-src" }[tag.toLowerCase()] ?? "default-src", url);
      }
    } else if (file.endsWith(".css")) {
      for (const [, url = ""] of text.matchAll(/url\(["']?(https?:\/\/[^"')]+)/g)) {
        addOrigin(/\.(woff2?|ttf|otf)\b/.test(url) ? "font-src" : "img-src", url);
      }
    } else {
      if (/\bWebAssembly\.(instantiate|compile|Module)/.test(text)) add("script-src", "'wasm-unsafe-eval'");
      for (const [, url = ""] of text.matchAll(/\b(?:fetch|EventSource|WebSocket|sendBeacon)\(\s*["'`]((?:https?|wss?):\/\/[^"'`\s${}]+)/g)) addOrigin("connect-src", url);
      const handWritten = /addEventListener\(["'`]fetch["'`]/.test(text) && /\brespondWith\b/.test(text);
      if (((handWritten && !text.includes(prefix)) || /\bNavigationRoute\b|createHandlerBoundToURL/.test(text)) && !text.includes(prefix.replaceAll("/", "\\/"))) {
        lines.push(
          handWritten
            ? `${file} responds to requests without a test for ${prefix}: if that includes navigations, no user can sign in`
            : `${file} handles navigations to ${prefix}, so no user can sign in: add navigateFallbackDenylist of @cloakroom-bff/client/vite to its options`,
        );
      }
    }
  }
  const directives = Object.entries(csp).map(([directive, sources]) => `${directive}: [${[...sources].map((source) => JSON.stringify(source)).join(", ")}]`);
  if (directives.length > 0) lines.push(`this build needs frontend.csp: {${directives.join(", ")}}; "cloakroom csp" finds more`);
  return lines;
}
