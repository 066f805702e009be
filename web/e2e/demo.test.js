import { cloakroom, start } from "./process.js";
import { journeys } from "./journeys.js";

const tokenLife = 10; // seconds

/** Starts `cloakroom demo`. */
async function demo() {
  const { match, stop } = await start(await cloakroom(), ["demo", "--listen", "127.0.0.1:0", "--access-token-ttl", `${tokenLife}s`], {
    ready: /(http:\/\/localhost:\d+)\D/,
  });
  return { baseURL: match[1], stop };
}

journeys("cloakroom demo", demo, { tokenLife });
