import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { access, mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { cloakroom, freePort, start } from "./process.js";

/**
 * Starts `cloakroom serve` with the build of an app. There is no provider: no user signs in.
 *
 * @param {string} dir
 * @param {Record<string, unknown>} [frontend] further keys of that section
 */
export async function host(dir, frontend = {}) {
  await access(join(dir, "index.html")).catch(() => assert.fail(`${dir} has no build: run make examples`));
  const [port, adminPort] = [await freePort(), await freePort()];
  const baseURL = `http://localhost:${port}`;
  const file = join(await mkdtemp(join(tmpdir(), "cloakroom-")), "cloakroom.yaml");
  const config = {
    server: { listen: `127.0.0.1:${port}`, public_url: baseURL, admin_listen: `127.0.0.1:${adminPort}` },
    oidc: { issuer: `http://127.0.0.1:${await freePort()}`, client_id: "app", client_secret: randomBytes(16).toString("hex") },
    frontend: { ...frontend, dir },
  };
  await writeFile(file, JSON.stringify(config)); // JSON is YAML
  const { stop, output } = await start(await cloakroom(), ["serve", "--config", file], { ready: /"msg":"listening"/ });
  return { baseURL, output, stop };
}
