// Platforms by the names that Docker has for them: what is built here runs here.

/** The one that there is. */
export const OWN_PLATFORM = 'linux/amd64';

/** `linux`, `amd64` and `linux/amd64/v2` are names of it too. */
export function isOwnPlatform(text: string): boolean {
  return /^(linux|(linux\/)?(amd64|x86_64|x86-64)(\/v\d)?)$/i.test(text);
}

/** Why an image for that one, or for those, is not made. */
export function refusalOfPlatform(text: string): { readonly message: string; readonly hint: string } {
  const said = text.slice(0, 60);
  if (text.includes(',')) {
    const hint = `leave it away, or build for ${OWN_PLATFORM} alone`;
    return { message: `${said} are several platforms: an image is built for one`, hint };
  }
  const hint = `leave it away, or build for ${said} on a machine of that kind`;
  return { message: `${said} does not run here: this machine builds ${OWN_PLATFORM}`, hint };
}
