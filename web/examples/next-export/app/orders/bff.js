import { createClient, ProblemError } from "@cloakroom-bff/client";

export const bff = createClient(); // does nothing while Next renders the export

/**
 * Calls the API and returns its JSON. If the call needs a stronger sign-in, the page goes there and comes back.
 *
 * @param {string} path
 * @param {import("@cloakroom-bff/client").FetchOptions} [init]
 */
export async function call(path, init) {
  const response = await bff.fetch(path, init);
  if (bff.stepUp(response)) return new Promise(() => {}); // the page is about to be left
  if (!response.ok) throw await ProblemError.from(response);
  return response.json();
}
