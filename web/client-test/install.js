// Installs the client as npm would from the registry: the files of its tarball.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const here = new URL(".", import.meta.url).pathname;
const target = join(here, "node_modules/@cloakroom-bff/client");
const temporary = mkdtempSync(join(tmpdir(), "cloakroom-client-"));
const packed = execFileSync("npm", ["pack", "--silent", "--pack-destination", temporary], { cwd: join(here, "../client"), encoding: "utf8" });
rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
execFileSync("tar", ["-xzf", join(temporary, packed.trim()), "-C", target, "--strip-components=1"]);
rmSync(temporary, { recursive: true });
