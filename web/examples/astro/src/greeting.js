/** A chunk of its own. */
export const greet = () => "Hello";
